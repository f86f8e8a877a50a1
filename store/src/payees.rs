//! Who is paid for a dataset beside the platform: its seller, and those who contributed to it.

use std::collections::HashMap;

use alloy_primitives::Address;
use comptoir_domain::{
    contribution::{AcceptedRows, weights},
    id::DatasetId,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::codec::to_address;

/// Who is paid for a dataset, and by what weight.
pub(crate) type Payees = Vec<(Address, u64)>;

/// Who is paid for a dataset, and by what weight, as it stands now. Nobody where the seller has no address. The connection must see everybody.
///
/// # Errors
/// When a statement fails, or what is stored passes a bound.
pub(crate) async fn of(conn: &mut PgConnection, dataset: DatasetId) -> sqlx::Result<Payees> {
    let mut payees = of_all(conn, &[dataset]).await?;
    Ok(payees.remove(&dataset).unwrap_or_default())
}

/// As [`of`], of each of these datasets; one whose seller has no address is left out.
///
/// # Errors
/// As [`of`].
pub(crate) async fn of_all(
    conn: &mut PgConnection,
    datasets: &[DatasetId],
) -> sqlx::Result<HashMap<DatasetId, Payees>> {
    let ids: Vec<_> = datasets.iter().map(|it| it.0).collect();
    let sellers = sqlx::query!(
        r#"SELECT dataset_id, a.address AS "address!" FROM datasets d JOIN accounts a USING (account_id)
           WHERE dataset_id = ANY ($1) AND a.address IS NOT NULL"#,
        &ids,
    )
    .fetch_all(&mut *conn)
    .await?;
    let rows = sqlx::query!(
        r#"SELECT c.dataset_id, a.address AS "address!", t.pool_ppm, sum(c.rows)::bigint AS "rows!"
           FROM contributions c JOIN contribution_terms t ON t.dataset_id = c.dataset_id AND t.number = c.terms_number
           JOIN accounts a USING (account_id)
           WHERE c.dataset_id = ANY ($1) AND c.state = 'accepted' AND a.address IS NOT NULL
           GROUP BY c.dataset_id, a.address, t.pool_ppm ORDER BY a.address, t.pool_ppm"#,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    let mut accepted: HashMap<Uuid, Vec<AcceptedRows>> = HashMap::new();
    for row in rows {
        let of_dataset = accepted.entry(row.dataset_id).or_default();
        of_dataset.push(AcceptedRows {
            payee: to_address("address", &row.address)?,
            rows: row.rows.unsigned_abs(),
            pool_ppm: row.pool_ppm.unsigned_abs(),
        });
    }
    let payees = sellers.into_iter().map(|row| {
        let accepted = accepted.remove(&row.dataset_id).unwrap_or_default();
        let payees = weights(to_address("address", &row.address)?, &accepted);
        let too_many = || sqlx::Error::Decode("more rows are accepted than there may be".into());
        Ok((DatasetId(row.dataset_id), payees.ok_or_else(too_many)?))
    });
    payees.collect()
}
