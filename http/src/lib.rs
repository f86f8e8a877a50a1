//! What every HTTP service of ours shares: the server, problem documents, extractors, request ids, metrics.
