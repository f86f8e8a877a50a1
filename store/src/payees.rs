//! Who is paid for a dataset beside the platform: its seller, and those who contributed to it.

use alloy_primitives::Address;
use comptoir_domain::{
    contribution::{AcceptedRows, weights},
    id::DatasetId,
};
use sqlx::PgConnection;

use crate::codec::to_address;

/// Who is paid for a dataset, and by what weight, as it stands now. Nobody where the seller has no address. The connection must see everybody.
///
/// # Errors
/// When a statement fails, or what is stored passes a bound.
pub(crate) async fn of(
    conn: &mut PgConnection,
    dataset: DatasetId,
) -> sqlx::Result<Vec<(Address, u64)>> {
    let seller = sqlx::query_scalar!(
        r#"SELECT a.address AS "address!" FROM datasets d JOIN accounts a USING (account_id)
           WHERE dataset_id = $1 AND a.address IS NOT NULL"#,
        dataset.0,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(seller) = seller else {
        return Ok(Vec::new());
    };
    let rows = sqlx::query!(
        r#"SELECT a.address AS "address!", t.pool_ppm, sum(c.rows)::bigint AS "rows!"
           FROM contributions c JOIN contribution_terms t ON t.dataset_id = c.dataset_id AND t.number = c.terms_number
           JOIN accounts a USING (account_id)
           WHERE c.dataset_id = $1 AND c.state = 'accepted' AND a.address IS NOT NULL
           GROUP BY a.address, t.pool_ppm ORDER BY a.address, t.pool_ppm"#,
        dataset.0,
    )
    .fetch_all(conn)
    .await?;
    let accepted = rows.into_iter().map(|row| {
        Ok(AcceptedRows {
            payee: to_address("address", &row.address)?,
            rows: row.rows.unsigned_abs(),
            pool_ppm: row.pool_ppm.unsigned_abs(),
        })
    });
    let accepted = accepted.collect::<sqlx::Result<Vec<_>>>()?;
    weights(to_address("address", &seller)?, &accepted)
        .ok_or_else(|| sqlx::Error::Decode("more rows are accepted than there may be".into()))
}
