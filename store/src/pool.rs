//! Connections: one pool per service, in that service's database role.

use std::time::Duration;

use sqlx::{
    PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{group, tenant};

/// How long a request waits for a connection before it is refused.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// Which service connects; each has only the rights that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceRole {
    /// The client-facing API.
    Api,
    /// The worker-facing scheduler.
    Scheduler,
    /// The chain-facing settler.
    Settler,
    /// What administrators do through the API.
    Admin,
}

impl ServiceRole {
    const fn name(self) -> &'static str {
        match self {
            Self::Api => "comptoir_api",
            Self::Scheduler => "comptoir_scheduler",
            Self::Settler => "comptoir_settler",
            Self::Admin => "comptoir_admin",
        }
    }
}

/// Opens a pool whose sessions hold the rights of `role` and nothing more.
///
/// # Errors
/// When the first connection fails, or the login may not become the role.
pub async fn connect(
    options: PgConnectOptions,
    role: ServiceRole,
    connections_max: u32,
) -> sqlx::Result<PgPool> {
    connect_patiently(options, role, connections_max, ACQUIRE_TIMEOUT).await
}

/// [`connect`], where a request waits for a connection for so long. Tests, which must not fail because the machine is busy, wait
/// longer than clients would.
///
/// # Errors
/// As [`connect`].
pub async fn connect_patiently(
    options: PgConnectOptions,
    role: ServiceRole,
    connections_max: u32,
    acquire_timeout: Duration,
) -> sqlx::Result<PgPool> {
    let options = options.application_name(role.name()).options([
        ("role", role.name()),
        ("statement_timeout", "60s"),
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "10s"),
        // Compiling a plan costs more than any of our statements takes.
        ("jit", "off"),
        // A table that was never analysed must not drop a hot statement to a bad generic plan.
        ("plan_cache_mode", "force_custom_plan"),
        // Until somebody begins a transaction for one tenant.
        tenant::EVERYBODY,
    ]);
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(acquire_timeout)
        .test_before_acquire(false)
        .after_release(|connection, _| {
            Box::pin(async move {
                // A request that was cancelled inside `begin` leaves a transaction open (sqlx 0.9.0). A bare `ROLLBACK`
                // would end it too, but warns into the server's log each time that nothing is open. Where a statement
                // had failed in it, `BEGIN` fails, and the pool closes the connection.
                sqlx::raw_sql("BEGIN; ROLLBACK").execute(connection).await?;
                Ok(true)
            })
        })
        .connect_with(options)
        .await
}

/// The transaction of a group waits for a row for this part of what a request waits for a connection: all of the group waits with
/// it.
const GROUP_LOCK_SHARE: u32 = 2;

/// A few connections beside the pool of a service, for the statements of so many kinds of groups, with plans as [`keeping_plans`] has them.
///
/// # Panics
/// Outside of a tokio runtime.
#[must_use]
pub fn for_groups(of: &PgPool, kinds: u32) -> PgPool {
    let lock_timeout = (of.options().get_acquire_timeout() / GROUP_LOCK_SHARE).as_millis();
    let lock_timeout = lock_timeout.to_string();
    beside(
        of,
        group::AT_ONCE * kinds,
        [("lock_timeout", lock_timeout.as_str())],
    )
}

/// A few connections beside the pool of a service, in the same role, with plans that are made once and kept: for single statements that find their
/// rows by keys, and would take longer to plan than to run. They loop over indexes and nothing else, so that what Postgres knows or does not know of
/// a table changes nothing.
///
/// # Panics
/// Outside of a tokio runtime.
#[must_use]
pub fn keeping_plans(of: &PgPool, connections_max: u32) -> PgPool {
    beside(of, connections_max, [])
}

fn beside<const N: usize>(
    of: &PgPool,
    connections_max: u32,
    settings: [(&str, &str); N],
) -> PgPool {
    let options = of.connect_options().as_ref().clone().options(settings);
    let options = options.options([
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("enable_material", "off"),
    ]);
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(of.options().get_acquire_timeout())
        .test_before_acquire(false)
        .connect_lazy_with(options)
}

/// Can this connection read a table of ours? A server that lost its files still answers an empty statement.
///
/// # Errors
/// When it cannot.
pub async fn check(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query_scalar!("SELECT account_id FROM accounts LIMIT 1")
        .fetch_optional(connection)
        .await?;
    Ok(())
}

/// Makes the database that `url` names, unless it is there.
///
/// # Errors
/// When the server does not answer, or refuses.
pub async fn create_database(url: &str) -> sqlx::Result<()> {
    use sqlx::migrate::MigrateDatabase as _;
    if sqlx::Postgres::database_exists(url).await? {
        return Ok(());
    }
    sqlx::Postgres::create_database(url).await
}
