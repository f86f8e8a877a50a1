//! Names of the scheduler's metrics.

/// Leases given.
pub const LEASES: &str = "scheduler_leases_total";
/// Reports of workers, by kind and outcome.
pub const REPORTS: &str = "scheduler_reports_total";
/// Attempts that ended without a result, by code and whether they are tried again.
pub const FAULTS: &str = "scheduler_attempt_faults_total";
/// Verdicts, by kind.
pub const VERDICTS: &str = "scheduler_verdicts_total";
/// Jobs whose held-back pay was moved, by fate.
pub const HOLDBACKS: &str = "scheduler_holdbacks_total";
/// Shares of proceeds of blocked datasets that were moved, by fate.
pub const PROCEEDS: &str = "scheduler_held_proceeds_total";
/// Shares of proceeds of blocked datasets that wait for a decision.
pub const PROCEEDS_HELD: &str = "scheduler_held_proceeds";
/// Confirming runs that the house has not paid yet.
pub const AUDITS_OWED: &str = "scheduler_audits_owed";
/// Replicas that wait for a worker.
pub const WAITING: &str = "scheduler_queue_waiting";
/// Replicas that a worker has.
pub const LEASED: &str = "scheduler_queue_leased";
/// Seconds of one round of a step, by step.
pub const STEP_SECONDS: &str = "scheduler_step_duration_seconds";
/// Rounds of a step that failed, by step.
pub const STEP_ERRORS: &str = "scheduler_step_errors_total";
/// Times that a dataset was opened to a worker.
pub const DATASET_SERVINGS: &str = "scheduler_dataset_servings_total";
/// Parts of datasets that were found damaged or missing when a worker asked for them.
pub const DATASET_DAMAGES: &str = "scheduler_dataset_damages_total";
/// Requests that hold a long poll.
pub const POLLS: &str = "scheduler_polls_held";
/// Workers that take calls of models.
pub const CALL_WORKERS: &str = "scheduler_call_workers";
/// Calls that wait for the answer of a worker.
pub const CALLS_WAITING: &str = "scheduler_calls_waiting";
/// Calls that were not passed on to their worker.
pub const CALLS_REFUSED: &str = "scheduler_calls_refused_total";

/// Tells the recorder what they mean; once, after it is installed.
pub fn describe() {
    metrics::describe_counter!(LEASES, "Leases given");
    metrics::describe_gauge!(CALL_WORKERS, "Workers that take calls of models");
    metrics::describe_gauge!(CALLS_WAITING, "Calls that wait for the answer of a worker");
    metrics::describe_counter!(
        CALLS_REFUSED,
        "Calls that were not passed on to their worker"
    );
    metrics::describe_counter!(REPORTS, "Reports of workers, by kind and outcome");
    metrics::describe_counter!(FAULTS, "Attempts that ended without a result, by code");
    metrics::describe_counter!(VERDICTS, "Verdicts, by kind");
    metrics::describe_counter!(HOLDBACKS, "Jobs whose held-back pay was moved, by fate");
    metrics::describe_gauge!(
        AUDITS_OWED,
        "Confirming runs that the house has not paid yet"
    );
    metrics::describe_counter!(
        PROCEEDS,
        "Shares of proceeds of blocked datasets that were moved, by fate"
    );
    metrics::describe_gauge!(
        PROCEEDS_HELD,
        "Shares of proceeds of blocked datasets that wait for a decision"
    );
    metrics::describe_gauge!(WAITING, "Replicas that wait for a worker");
    metrics::describe_gauge!(LEASED, "Replicas that a worker has");
    metrics::describe_histogram!(
        STEP_SECONDS,
        metrics::Unit::Seconds,
        "Time of one round of a step"
    );
    metrics::describe_counter!(STEP_ERRORS, "Rounds of a step that failed");
    metrics::describe_counter!(
        DATASET_SERVINGS,
        "Times that a dataset was opened to a worker"
    );
    metrics::describe_counter!(
        DATASET_DAMAGES,
        "Parts of datasets that were found damaged or missing when a worker asked for them"
    );
    metrics::describe_gauge!(POLLS, "Requests that hold a long poll");
}
