//! Rights to datasets: who may read or compute on what, and until when.

use comptoir_domain::{
    id::{
        AccountId, ContributionId, DatasetId, DatasetVersionId, EntitlementId, PurchaseId,
        TakedownId,
    },
    offer::Allows,
    purchase::{EntitlementState, PurchaseState},
};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::codec::to_enum;

/// A right that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entitlement {
    /// Which.
    pub id: EntitlementId,
    /// The purchase that gave it; `None`: a contribution did.
    pub purchase: Option<PurchaseId>,
    /// Is the purchase held still, and to be made final by the first byte?
    pub is_open: bool,
    /// Until when; `None`: for good.
    pub ends_at: Option<OffsetDateTime>,
}

/// How an account stands to a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nobody reads the dataset: a takedown blocks it.
    Blocked(TakedownId),
    /// It may read the files.
    Active(Entitlement),
    /// Its jobs may compute on them, and that is all.
    ComputeOnly,
    /// It might until then.
    Expired(OffsetDateTime),
    /// It might, and the price went back, or what it was offered did.
    TakenBack,
    /// It never had a right.
    None,
}

/// A right, as its owner lists it.
#[derive(Debug, Clone)]
pub struct Owned {
    /// Which.
    pub id: EntitlementId,
    /// To what.
    pub dataset: DatasetId,
    /// What that is called.
    pub title: String,
    /// The version; `None`: every version.
    pub version: Option<DatasetVersionId>,
    /// The purchase that gave it,
    pub purchase: Option<PurchaseId>,
    /// or the contribution to a dataset of the account's.
    pub contribution: Option<ContributionId>,
    /// What it allows.
    pub allows: Allows,
    /// What it is worth now.
    pub state: EntitlementState,
    /// From when on.
    pub starts_at: OffsetDateTime,
    /// Until when, or when it was ended; `None`: for good.
    pub ends_at: Option<OffsetDateTime>,
}

/// How the account stands to a version now: the best of its rights counts: of two that let it read the one that is paid
/// already, and then the one whose time runs anyway.
///
/// # Errors
/// When the statement fails.
pub async fn standing(
    conn: &mut PgConnection,
    account: AccountId,
    (dataset, version): (DatasetId, DatasetVersionId),
    now: OffsetDateTime,
) -> sqlx::Result<Standing> {
    let row = sqlx::query!(
        r#"SELECT d.blocked_by, e.entitlement_id AS "entitlement_id?", e.purchase_id, p.state AS "purchase_state?", e.allows AS "allows?", e.ends_at,
             least(e.ends_at, e.ended_at) AS over_at,
             e.ended_at IS NULL AND (e.ends_at IS NULL OR e.ends_at > $4) AS "is_active!"
           FROM datasets AS d
           LEFT JOIN entitlements AS e ON e.account_id = $1 AND e.dataset_id = d.dataset_id AND (e.version_id IS NULL OR e.version_id = $3)
             AND e.starts_at <= $4
           LEFT JOIN purchases AS p USING (purchase_id)
           WHERE d.dataset_id = $2
           ORDER BY "is_active!" DESC, e.allows = 'download' DESC, coalesce(p.state = 'refunded', false), coalesce(p.state = 'granted', false), over_at DESC NULLS LAST LIMIT 1"#,
        account.0,
        dataset.0,
        version.0,
        now,
    )
    .fetch_optional(conn)
    .await?;
    let Some(row) = row else {
        return Ok(Standing::None);
    };
    if let Some(takedown) = row.blocked_by {
        return Ok(Standing::Blocked(TakedownId(takedown)));
    }
    let (Some(entitlement), Some(allows)) = (row.entitlement_id, row.allows) else {
        return Ok(Standing::None);
    };
    let purchase_state = row.purchase_state;
    let purchase_state = purchase_state.map(|it| to_enum("state", &it, PurchaseState::parse));
    let purchase_state = purchase_state.transpose()?;
    let allows = to_enum("allows", &allows, Allows::parse)?;
    Ok(match (row.is_active, allows, row.over_at) {
        (true, Allows::Download, _) => Standing::Active(Entitlement {
            id: EntitlementId(entitlement),
            purchase: row.purchase_id.map(PurchaseId),
            is_open: purchase_state == Some(PurchaseState::Granted),
            ends_at: row.ends_at,
        }),
        (true, Allows::Compute, _) => Standing::ComputeOnly,
        (false, Allows::Download, Some(at))
            if purchase_state.is_some_and(|it| it != PurchaseState::Refunded) =>
        {
            Standing::Expired(at)
        }
        (false, Allows::Download, _) => Standing::TakenBack,
        (false, Allows::Compute, _) => Standing::None,
    })
}

/// Could somebody get a right to read the version: is something on sale that gives it?
///
/// # Errors
/// When the statement fails.
pub async fn is_on_sale(
    conn: &mut PgConnection,
    (dataset, version): (DatasetId, DatasetVersionId),
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM offers AS o JOIN datasets AS d USING (dataset_id)
             WHERE o.dataset_id = $1 AND is_on_sale(o, d) AND o.kind <> 'compute_only'
               AND (o.version_id IS NULL OR o.version_id = $2)) AS "is_on_sale!""#,
        dataset.0,
        version.0,
    )
    .fetch_one(conn)
    .await
}

/// Has anybody a right to the version that is not over, or asked for one? The connection must see everybody.
///
/// # Errors
/// When the statement fails.
pub async fn is_sold(
    conn: &mut PgConnection,
    (dataset, version): (DatasetId, DatasetVersionId),
    now: OffsetDateTime,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM entitlements
             WHERE dataset_id = $1 AND (version_id IS NULL OR version_id = $2) AND ended_at IS NULL AND (ends_at IS NULL OR ends_at > $3))
           OR EXISTS (SELECT FROM purchases
             WHERE dataset_id = $1 AND (version_id IS NULL OR version_id = $2) AND state = 'requested') AS "is_sold!""#,
        dataset.0,
        version.0,
        now,
    )
    .fetch_one(conn)
    .await
}

/// The rights of an account, newest first; those in one state alone where it is named.
///
/// # Errors
/// When the statement fails.
pub async fn list(
    conn: &mut PgConnection,
    account: AccountId,
    state: Option<EntitlementState>,
    before: Option<EntitlementId>,
    now: OffsetDateTime,
    limit: i64,
) -> sqlx::Result<Vec<Owned>> {
    let rows = sqlx::query!(
        r#"SELECT entitlement_id AS "id!", dataset_id AS "dataset!", title AS "title!", version_id, purchase_id, contribution_id, allows AS "allows!",
             state AS "state!", starts_at AS "starts_at!", over_at
           FROM (
             SELECT e.entitlement_id, e.dataset_id, d.title, e.version_id, e.purchase_id, e.contribution_id, e.allows, e.starts_at, least(e.ends_at, e.ended_at) AS over_at,
               CASE WHEN p.state = 'refunded' OR e.contribution_id IS NOT NULL AND e.ended_at <= $4 THEN 'taken_back' WHEN least(e.ends_at, e.ended_at) <= $4 THEN 'expired'
                 WHEN e.starts_at > $4 THEN 'upcoming' ELSE 'active' END AS state
             FROM entitlements AS e LEFT JOIN purchases AS p USING (purchase_id) JOIN datasets AS d ON d.dataset_id = e.dataset_id
             WHERE e.account_id = $1 AND ($3::uuid IS NULL OR e.entitlement_id < $3)
           ) AS it
           WHERE $2::text IS NULL OR state = $2 ORDER BY entitlement_id DESC LIMIT $5"#,
        account.0,
        state.map(EntitlementState::as_str),
        before.map(|it| it.0),
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let owned = rows.into_iter().map(|row| {
        Ok(Owned {
            id: EntitlementId(row.id),
            dataset: DatasetId(row.dataset),
            title: row.title,
            version: row.version_id.map(DatasetVersionId),
            purchase: row.purchase_id.map(PurchaseId),
            contribution: row.contribution_id.map(ContributionId),
            allows: to_enum("allows", &row.allows, Allows::parse)?,
            state: to_enum("state", &row.state, EntitlementState::parse)?,
            starts_at: row.starts_at,
            ends_at: row.over_at,
        })
    });
    owned.collect()
}
