//! Datasets that takedowns block, for histories: what they earn is held back until that is decided.

use comptoir_domain::{
    id::{AccountId, DatasetId},
    takedown::{Act, Ground},
};
use comptoir_store::{
    PgTransaction,
    holdback::{Fate, proceeds},
    takedowns::{self, NewTakedown},
};

use crate::{
    harness::{Money, NOW},
    model::{Model, Until},
};

/// A dataset that is blocked.
pub async fn dataset(money: &Money, seller: AccountId, claimant: AccountId) -> DatasetId {
    let dataset = DatasetId::generate();
    let mut tx = money.owner.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO datasets (dataset_id, account_id, name, title, description, licence, provenance, tags, state, created_at, updated_at)
         VALUES ($1, $2, $3, 'x', '', 'MIT', '', '{}', 'listed', $4, $4)",
    )
    .bind(dataset.0)
    .bind(seller.0)
    .bind(dataset.to_string())
    .bind(NOW)
    .execute(&mut *tx)
    .await
    .unwrap();
    let new = NewTakedown {
        account: claimant,
        dataset,
        seller,
        ground: Ground::Other,
        statement: "mine",
    };
    let id = takedowns::file(&mut tx, &new, NOW).await.unwrap();
    let by = (AccountId::generate(), id);
    let frozen = takedowns::decide(&mut tx, by, (Act::Freeze, "test"), NOW).await;
    frozen.unwrap();
    tx.commit().await.unwrap();
    dataset
}

/// Decides the takedown of a dataset that has earned something, and moves that. Was there one?
pub async fn move_proceeds(
    money: &Money,
    tx: &mut PgTransaction<'_>,
    after: &mut Model,
    which: usize,
) -> bool {
    let earned = after.held_back.iter().filter_map(|it| match it.until {
        Until::Decided(dataset) => Some(dataset),
        Until::Result(_) => None,
    });
    let earned: Vec<_> = earned.collect();
    if earned.is_empty() {
        return false;
    }
    let dataset = earned[which % earned.len()];
    let upheld = after.blocked[&dataset];
    // What moves may be rolled back; what is decided stays.
    sqlx::query("UPDATE takedowns SET state = $2, due_at = NULL, ended_at = $3 WHERE dataset_id = $1 AND state = 'frozen'")
        .bind(dataset.0)
        .bind(if upheld { "upheld" } else { "rejected" })
        .bind(NOW)
        .execute(&money.owner)
        .await
        .unwrap();
    let (fate, moved) = proceeds::move_due(tx, dataset, NOW).await.unwrap();
    assert_eq!(fate == Fate::Forfeited, upheld);
    assert_eq!(moved, after.move_proceeds(dataset, upheld));
    true
}
