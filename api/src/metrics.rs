//! Names of the API's metrics.

/// Versions of datasets that were checked, by outcome.
pub const DATASET_CHECKS: &str = "api_dataset_checks_total";
/// Files of datasets that were found damaged or missing when they were read.
pub const DATASET_DAMAGES: &str = "api_dataset_damages_total";
/// Versions on sale that were found to be unreadable before somebody paid.
pub const DATASETS_UNAVAILABLE: &str = "api_datasets_unavailable_total";
/// Purchases whose time had come, by what came of them.
pub const PURCHASE_STEPS: &str = "api_purchase_steps_total";
/// Contributions that nobody answered in time.
pub const CONTRIBUTIONS_LAPSED: &str = "api_contributions_lapsed_total";
/// Takedowns that their clock decided, by what they became.
pub const TAKEDOWNS_OVERDUE: &str = "api_takedowns_overdue_total";
/// Calls of models, by outcome: `answered`, `refused`, `failed`.
pub const CALLS: &str = "api_calls_total";
/// Seconds from a call to its answer.
pub const CALL_SECONDS: &str = "api_call_duration_seconds";
/// Times that a call was asked of another worker, or given up, because the first one did not answer.
pub const CALL_RETRIES: &str = "api_call_retries_total";
/// Calls that wait for a worker.
pub const CALLS_WAITING: &str = "api_calls_waiting";
/// Workers that can host models, as this process knows.
pub const CALL_HOSTS: &str = "api_call_hosts";
/// Results that sellers of datasets did not release in time.
pub const RESULTS_DENIED: &str = "api_results_denied_total";
/// Objects that nobody referred to, and were removed, by what they were.
pub const STRAYS_REMOVED: &str = "api_strays_removed_total";
/// Can files of datasets be checked on this machine? 1 or 0.
pub const CHECKER_READY: &str = "api_checker_ready";
/// Allowances that were charged after their process fell silent, by what came of it.
pub const ALLOWANCES_ABANDONED: &str = "api_allowances_abandoned_total";

/// Tells the recorder what they mean; once, after it is installed.
pub fn describe() {
    metrics::describe_counter!(CALLS, "Calls of models, by outcome");
    metrics::describe_histogram!(CALL_SECONDS, "Seconds from a call to its answer");
    metrics::describe_counter!(
        CALL_RETRIES,
        "Times that a worker did not answer a call that it was asked"
    );
    metrics::describe_gauge!(CALLS_WAITING, "Calls that wait for a worker");
    metrics::describe_gauge!(CALL_HOSTS, "Workers that can host models");
    metrics::describe_counter!(
        DATASET_CHECKS,
        "Versions of datasets that were checked, by outcome"
    );
    metrics::describe_counter!(
        DATASET_DAMAGES,
        "Files of datasets that were found damaged or missing when they were read"
    );
    metrics::describe_counter!(
        DATASETS_UNAVAILABLE,
        "Versions on sale that were found to be unreadable before somebody paid"
    );
    metrics::describe_counter!(
        PURCHASE_STEPS,
        "Purchases whose time had come, by what came of them"
    );
    metrics::describe_counter!(
        CONTRIBUTIONS_LAPSED,
        "Contributions that nobody answered in time"
    );
    metrics::describe_counter!(
        TAKEDOWNS_OVERDUE,
        "Takedowns that their clock decided, by what they became"
    );
    metrics::describe_counter!(
        RESULTS_DENIED,
        "Results that sellers of datasets did not release in time"
    );
    metrics::describe_counter!(
        STRAYS_REMOVED,
        "Objects that nobody referred to, and were removed, by what they were"
    );
    metrics::describe_gauge!(
        CHECKER_READY,
        "Can files of datasets be checked on this machine? 1 or 0"
    );
    metrics::describe_counter!(
        ALLOWANCES_ABANDONED,
        "Allowances that were charged after their process fell silent, by what came of it"
    );
}
