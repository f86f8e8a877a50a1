//! Transactions that settling sends.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::job::state::text_enum;

text_enum! {
    /// What a transaction is for.
    IntentKind {
        /// Commits a batch.
        Commit = "commit",
        /// Answers an exit.
        AnswerExit = "answer_exit",
        /// Uses a nonce up that would hold up those after it.
        Fill = "fill",
    }
}
