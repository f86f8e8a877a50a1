//! Every kind of problem that a service of ours answers with; each has a page at `/problems/<code>`.

/// One kind of problem.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// The stable word.
    pub code: &'static str,
    /// The status that it comes with.
    pub status: u16,
    /// What it means, and what to do.
    pub meaning: &'static str,
}

const fn code(code: &'static str, status: u16, meaning: &'static str) -> Code {
    Code {
        code,
        status,
        meaning,
    }
}

/// All of them, by status.
pub const ALL: &[Code] = &[
    code(
        "malformed_request",
        400,
        "The request could not be read: broken JSON, a bad query parameter, a cursor of another list. Correct it; repeating it changes nothing.",
    ),
    code(
        "idempotency_key_missing",
        400,
        "This operation creates something or moves money, so it needs an Idempotency-Key header of 1 to 255 printable ASCII characters.",
    ),
    code(
        "unauthenticated",
        401,
        "No credential, or one that is unknown, expired or revoked. Send `Authorization: Bearer` with an access token or an API key.",
    ),
    code(
        "invalid_grant",
        401,
        "The e-mail and password do not match, the signed message does not hold, or the token is unknown, spent or expired. Sign in again.",
    ),
    code(
        "insufficient_funds",
        402,
        "The available balance does not cover what this would hold. Deposit first, or ask for less.",
    ),
    code(
        "spend_limit_reached",
        402,
        "The API key's spend limit does not cover what the job would hold. GET /v1/key says what is left, and until when.",
    ),
    code(
        "ip_refused",
        403,
        "The API key may not be used from this address. Its owner decided from which networks it may.",
    ),
    code(
        "key_restricted",
        403,
        "An API key that ends, that may be used from some networks alone, or that has a spend limit makes no other keys.",
    ),
    code(
        "insufficient_scope",
        403,
        "The API key is valid but was not given the scope that this operation needs.",
    ),
    code(
        "admission_required",
        403,
        "The model is gated: its creator decides who calls it. Ask with `POST /v1/models/{model}/admissions`; calls are answered once that is granted.",
    ),
    code(
        "session_required",
        403,
        "Only somebody who signed in may do this; an API key is not enough.",
    ),
    code(
        "origin_refused",
        403,
        "A cookie is taken from pages of this service alone: the Origin header is missing, or names another site.",
    ),
    code(
        "payment_required",
        402,
        "The account has no right to these bytes, and can have one: the dataset's offers say on what terms. Take one, then repeat the request.",
    ),
    code(
        "compute_only",
        403,
        "What the account has lets jobs compute on the dataset. Its bytes are not handed out.",
    ),
    code(
        "link_expired",
        410,
        "The link to a file is over: it holds for two minutes. Make another one.",
    ),
    code(
        "link_used",
        410,
        "The link to a file was for one use. Make another one.",
    ),
    code(
        "entitlement_expired",
        410,
        "The account's right to read the dataset, or to compute on it, is over, by time, by a refund, or with the offer; the detail says since when, where it is known. The dataset's offers may give it another; what was quoted under it is void.",
    ),
    code(
        "version_sold",
        409,
        "Somebody has a right to the version, so it stays until that right is over. Withdraw the dataset to sell it to nobody else.",
    ),
    code(
        "not_entitled",
        403,
        "The file may be known, and not be read: it is no sample, and the account has no right to it. To compute on it takes a right, or an offer that stands open.",
    ),
    code(
        "program_not_allowed",
        403,
        "The seller of the dataset named the programs that may compute on it, and this one is not among them.",
    ),
    code(
        "awaiting_release",
        403,
        "The job computed on a dataset whose seller consents to each result before it is handed out. Ask again later.",
    ),
    code(
        "release_denied",
        403,
        "The job computed on a dataset whose seller did not release its results within a week: nobody is handed them any more.",
    ),
    code(
        "not_found",
        404,
        "There is no such object, or it belongs to somebody else.",
    ),
    code(
        "no_such_route",
        404,
        "The service has no such address. The list of operations is at /docs.",
    ),
    code(
        "method_not_allowed",
        405,
        "The address exists, but does not take this method. The Allow header names those that it takes.",
    ),
    code(
        "own_dataset",
        409,
        "The dataset is the account's own: what is yours need not be bought, and nobody contributes to it but others.",
    ),
    code(
        "already_owned",
        409,
        "The account has this for good already, by the purchase that is named. Nothing was bought or held.",
    ),
    code(
        "already_requested",
        409,
        "The account's request for this offer waits for the seller's answer.",
    ),
    code(
        "already_subscribed",
        409,
        "The account has a subscription of this offer that has not ended.",
    ),
    code(
        "price_changed",
        409,
        "It costs something else than `expected_price`, or earns something else than `expected_reward`. Nothing was charged; look again, and decide again.",
    ),
    code(
        "not_on_sale",
        409,
        "The offer is closed, its dataset is not listed, or its seller is frozen or cannot be paid. Nothing was bought.",
    ),
    code(
        "nothing_to_take",
        409,
        "An offer of the kind `compute_only` that nobody has to ask for is not bought: a job names the dataset, and its price has the offer's in it.",
    ),
    code(
        "compute_offer_stands",
        409,
        "The dataset has an open offer to compute on it. Close that one first: a job's price depends on one offer.",
    ),
    code(
        "purchase_final",
        409,
        "The purchase is charged, refunded, denied or lapsed; it does not end again.",
    ),
    code(
        "purchase_kind",
        409,
        "What was bought for good is given back with `refund`; what lasts for some time is ended with `end`.",
    ),
    code(
        "request_answered",
        409,
        "The request was answered before, or its time is over.",
    ),
    code(
        "dataset_blocked",
        451,
        "A takedown, which the detail names, blocks the dataset: nothing of it is sold, handed out or computed on until that is decided. The `Link` header names who blocks it.",
    ),
    code(
        "version_disputed",
        409,
        "The dataset is frozen by a takedown that is not decided: nothing of it is shredded before.",
    ),
    code(
        "takedown_filed",
        409,
        "The account has filed a takedown of the dataset that is not decided; the detail says which.",
    ),
    code(
        "too_many_takedowns",
        409,
        "Twenty takedowns of the account wait for an operator to look at them. Wait for one, or withdraw one.",
    ),
    code(
        "takedown_state",
        409,
        "The takedown stands where this cannot be done to it, or its clock has run out; the detail says which.",
    ),
    code(
        "contributions_closed",
        409,
        "The dataset takes no contributions: its owner invites nobody now, or took it off the list.",
    ),
    code(
        "duplicate_contribution",
        409,
        "The file that the detail names is in the dataset already, was offered to it already, or is twice in the version. Leave it out, and offer the rest.",
    ),
    code(
        "too_many_contributions",
        409,
        "Ten contributions of the account to this dataset wait for an answer. Wait for one, or withdraw one.",
    ),
    code(
        "contribution_answered",
        409,
        "The contribution was accepted, rejected or withdrawn before, or its time is over.",
    ),
    code(
        "too_many_contributors",
        409,
        "A sale is shared by at most 1,000: the seller, and 999 who contributed. Those who contributed already may contribute more.",
    ),
    code(
        "too_many_rows",
        409,
        "At most 10^12 rows are accepted to one dataset.",
    ),
    code(
        "contributor_unpaid",
        409,
        "The contributor has no address that the reward could go to. Nothing was charged.",
    ),
    code(
        "version_contributed",
        409,
        "The version is offered to the dataset of another, or accepted there. Withdraw the contribution first; what is accepted stays.",
    ),
    code(
        "too_many_keys",
        409,
        "The account has as many working API keys as it may. Revoke one first.",
    ),
    code(
        "too_many_webhook_endpoints",
        409,
        "The account has as many webhook endpoints as it may. Delete one first.",
    ),
    code(
        "webhook_endpoint_disabled",
        409,
        "Nothing is sent to the endpoint. PATCH it with `enabled: true` first.",
    ),
    code(
        "email_taken",
        409,
        "An account with this e-mail exists already.",
    ),
    code(
        "address_taken",
        409,
        "The address is bound to another account. One address belongs to one account.",
    ),
    code(
        "address_already_bound",
        409,
        "The address is the account's already, or the account has one that is to be changed.",
    ),
    code(
        "address_change_pending",
        409,
        "A change of the account's address waits for its time already. Take it back first, or wait.",
    ),
    code(
        "dataset_name_taken",
        409,
        "The account has a dataset of that name. Choose another one: a dataset's name stays.",
    ),
    code(
        "own_model",
        409,
        "The model is your own: whoever made it calls it without being let in.",
    ),
    code(
        "model_not_gated",
        409,
        "Nobody has to be let in: whoever finds the model calls it.",
    ),
    code(
        "already_asked",
        409,
        "You have asked to call the model already, or are let in; `detail` names the admission.",
    ),
    code(
        "asked_too_soon",
        409,
        "You were denied or sent away less than a day ago; `detail` says when you may ask again.",
    ),
    code(
        "admission_state",
        409,
        "Only what is requested is granted or denied, and only what is granted is revoked; `detail` says what it is.",
    ),
    code(
        "model_name_taken",
        409,
        "The account has a model of that name. Choose another one: a model's name stays.",
    ),
    code(
        "model_version_exists",
        409,
        "The model has a version of the same programs, weights and labels already; `detail` names it. What does not differ needs no version of its own.",
    ),
    code(
        "no_version",
        409,
        "Others cannot find a model that has nothing to call. Publish a version first.",
    ),
    code(
        "no_price",
        409,
        "Others cannot find a model whose calls have no price. Give it one first; it may be 0.",
    ),
    code(
        "version_retired",
        410,
        "Calls of the version have ended, as was announced. Call another version.",
    ),
    code(
        "cost_too_high",
        422,
        "What the call comes to at the model's price is above every amount. Call it with fewer rows.",
    ),
    code(
        "not_computed",
        422,
        "The model cannot compute these inputs, although their shapes fit. Nothing is charged.",
    ),
    code(
        "no_worker",
        503,
        "No worker is connected that could answer, or those that were asked did not. Nothing is charged; try again after `Retry-After`.",
    ),
    code(
        "version_not_served",
        503,
        "Workers cannot load the version. Nothing is charged; its creator has to publish another one.",
    ),
    code(
        "allowance_closed",
        503,
        "What would have paid for the call was closed while it was computed. Nothing is charged; try again.",
    ),
    code(
        "call_timeout",
        504,
        "No worker answered in time. Nothing is charged; try again after `Retry-After`.",
    ),
    code(
        "upgrade_required",
        426,
        "The route is a WebSocket of a subprotocol that the detail names.",
    ),
    code(
        "no_ticket",
        403,
        "The worker was not told to host the version, or its ticket has expired.",
    ),
    code(
        "nothing_ready",
        409,
        "The dataset cannot be listed before one of its versions is ready. Publish one first.",
    ),
    code(
        "too_many_drafts",
        409,
        "The dataset has as many versions that are not published as it may. Publish one, or delete one.",
    ),
    code(
        "version_not_draft",
        409,
        "The version was handed over to be published, or deleted: its files do not change any more. Make a new version.",
    ),
    code(
        "version_not_ready",
        409,
        "The version is not published yet, or was refused: there is nothing to read. Its `state` and `refusals` say more.",
    ),
    code(
        "version_incomplete",
        409,
        "The version has no files, files with missing parts, or a file where another one needs a folder. Upload what is missing, then publish.",
    ),
    code(
        "version_checking",
        409,
        "The version's files are being checked. Wait until it is ready or refused.",
    ),
    code(
        "version_last",
        409,
        "The version is the only one that the listed dataset has. Withdraw the dataset, or publish another version first.",
    ),
    code(
        "path_taken",
        409,
        "A version has one file per path, and paths that differ in case alone are the same.",
    ),
    code(
        "too_many_files",
        409,
        "A version has at most 10,000 files. Put small files together, as in one table.",
    ),
    code(
        "address_not_bound",
        409,
        "The account has no bound address yet, and money belongs to addresses. Bind one first.",
    ),
    code(
        "challenge_spent",
        409,
        "The challenge was used or has expired. Ask for a new one.",
    ),
    code(
        "idempotency_in_progress",
        409,
        "A request with this Idempotency-Key is being worked on. Repeat it after Retry-After seconds.",
    ),
    code(
        "quote_used",
        409,
        "A job was made from this quote already. A quote is good for one job; ask for another.",
    ),
    code(
        "admin_required",
        403,
        "Only an administrator of the service may do this, signed in with a password; an API key never.",
    ),
    code(
        "fresh_sign_in_required",
        401,
        "The sign-in is too old for this, or was not by password. Sign in again and repeat the request within 15 minutes.",
    ),
    code(
        "setup_token_refused",
        401,
        "The setup token is unknown, expired, redeemed already, or replaced by a newer one. `comptoir admin bootstrap` prints another.",
    ),
    code(
        "account_frozen",
        403,
        "The operator froze the account: nobody signs in to it, and it cannot submit, withdraw, or make keys and tokens. Its API keys read and cancel, and its address can leave on-chain. Ask the operator.",
    ),
    code(
        "limit_reached",
        403,
        "A limit of the account stands in the way; the detail says which. The operator can raise it.",
    ),
    code(
        "account_is_admin",
        409,
        "An administrator's account is not frozen. Take the role away first.",
    ),
    code(
        "last_admin",
        409,
        "The service keeps one administrator. Set another up first.",
    ),
    code(
        "job_not_charged",
        409,
        "There is nothing to give back: no such job, or nothing was charged for it.",
    ),
    code(
        "refund_waits",
        409,
        "Another refund of the same charge waits for approval. Approve or cancel it first.",
    ),
    code(
        "refund_decided",
        409,
        "The refund was given, cancelled, or not approved in time.",
    ),
    code(
        "refund_proposer_gone",
        409,
        "Whoever proposed the refund is no administrator any more. Cancel it and propose it again.",
    ),
    code(
        "refund_above_cap",
        422,
        "The refund is larger than the deployment lets one refund be.",
    ),
    code(
        "refund_day_cap",
        409,
        "The refunds of the last 24 hours reach what the deployment lets them be. Approve it later.",
    ),
    code(
        "refund_not_funded",
        409,
        "Refunds are paid from the platform's fees and from what its address has. Deposit for the platform's address first.",
    ),
    code(
        "second_person_required",
        403,
        "Money is given back by two administrators, neither of whom gets it: another one must do this.",
    ),
    code(
        "worker_disabled",
        409,
        "The worker was taken out for good. It must join again as a new one.",
    ),
    code(
        "job_ended",
        409,
        "The job has ended in another way, so it cannot be cancelled.",
    ),
    code(
        "no_verdict",
        409,
        "The job is not judged yet, or ended before anybody was: cancelled, expired, or failed for another reason. Look at its state.",
    ),
    code(
        "job_not_completed",
        409,
        "The job has no results: it has not completed, or never will. Its state and its failure say more.",
    ),
    code(
        "withdrawal_released",
        409,
        "The withdrawal is released, so it cannot be cancelled. Claim it on-chain once its batch is active.",
    ),
    code(
        "exit_requested",
        409,
        "The address asked the contract to leave. Nothing is spent for it until that exit is answered; what it has becomes claimable.",
    ),
    code(
        "quote_expired",
        410,
        "The quote's 15 minutes are over. Ask for another.",
    ),
    code(
        "version_shredded",
        410,
        "The version's key was thrown away: nobody can read its files any more.",
    ),
    code(
        "precondition_failed",
        412,
        "The object changed since you read it. Read it again and repeat with its new ETag.",
    ),
    code(
        "request_timeout",
        408,
        "The body did not arrive in time: a minute, and where it is taken as it comes a second more for each 64 KiB. Send it again.",
    ),
    code(
        "payload_too_large",
        413,
        "The body is larger than this operation takes.",
    ),
    code(
        "unsupported_media_type",
        415,
        "The body must be sent once, as application/json in UTF-8 (or as what the operation documents), without a Content-Encoding.",
    ),
    code(
        "range_not_satisfiable",
        416,
        "The range begins behind the end of the blob. Content-Range tells its size.",
    ),
    code(
        "invalid_request",
        422,
        "The request was read, but a value cannot be accepted. `errors` points at each.",
    ),
    code(
        "idempotency_key_reused",
        422,
        "The Idempotency-Key was used before with another body. Use a new key for a new request.",
    ),
    code(
        "address_refused",
        422,
        "The address cannot be an account's: it is zero, a precompile, one of our contracts, or the platform's.",
    ),
    code(
        "digest_mismatch",
        422,
        "The bytes that arrived do not have the digest in the address. Nothing was stored; hash the file again.",
    ),
    code(
        "part_length",
        422,
        "Each part of a file has `part_bytes` bytes, the last one what is left. Send exactly those.",
    ),
    code(
        "max_cost_below_quote",
        422,
        "The quote comes to more than max_cost. Nothing is held; raise max_cost or ask for less.",
    ),
    code(
        "signature_mismatch",
        422,
        "The signature is not one of the challenge's message by the challenge's address.",
    ),
    code(
        "precondition_required",
        428,
        "Send If-Match with the ETag of the object that you read, so that no change is lost.",
    ),
    code(
        "rate_limited",
        429,
        "This client asks too often, or tried to sign in too often. The RateLimit header tells what is left; repeat the request after Retry-After seconds.",
    ),
    code(
        "join_token_refused",
        401,
        "The join token is unknown, expired, revoked or used up. Ask its owner for a new one.",
    ),
    code(
        "signature_refused",
        401,
        "The signature is not one of these bytes by the worker's key, or there is no such worker.",
    ),
    code(
        "worker_barred",
        403,
        "Two other owners agreed on another result than this worker's. It gets no work, and what was held back of its pay goes to the clients it came from. Whoever runs the service can lift it: the worker then goes on by itself, its trust begun anew.",
    ),
    code(
        "worker_revoked",
        403,
        "The worker's owner took it out of service. Nothing that it sends is taken any more.",
    ),
    code(
        "stale_lease",
        409,
        "The lease ran out or passed to another worker. Drop the attempt: nothing of it counts.",
    ),
    code(
        "worker_key_taken",
        409,
        "Another worker has this public key. Make a new key for each worker.",
    ),
    code(
        "token_request_replayed",
        409,
        "A token request of this or a later moment was answered before. Sign a new one with the time of now.",
    ),
    code(
        "clock_skewed",
        422,
        "The moment named by the request is more than a minute away from the server's clock. Set the worker's clock.",
    ),
    code(
        "segment_out_of_order",
        409,
        "The segment is not the one after the last that is kept, or the attempt has none to come.",
    ),
    code(
        "checkpoint_not_uploaded",
        409,
        "The checkpoint blob was not uploaded by this attempt. Upload it first.",
    ),
    code(
        "too_many_blobs",
        409,
        "The attempt has uploaded more blobs than its outputs and checkpoints can be.",
    ),
    code(
        "length_required",
        411,
        "Say with Content-Length how many bytes the body has.",
    ),
    code(
        "internal",
        500,
        "The service failed. The request id finds the cause in our logs; the request may be repeated with the same Idempotency-Key.",
    ),
    code(
        "dataset_unavailable",
        503,
        "The dataset is on sale, but its bytes cannot be read now, so it is not sold. Nothing was held. Try again later.",
    ),
    code(
        "unavailable",
        503,
        "The service cannot answer now. Repeat the request after Retry-After seconds.",
    ),
];

/// The kind of this name.
#[must_use]
pub fn find(code: &str) -> Option<&'static Code> {
    ALL.iter().find(|known| known.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_listed_once_in_snake_case() {
        for (index, known) in ALL.iter().enumerate() {
            assert!(
                known
                    .code
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{}",
                known.code
            );
            assert!(
                ALL[index + 1..]
                    .iter()
                    .all(|other| other.code != known.code),
                "{}",
                known.code
            );
        }
    }
}
