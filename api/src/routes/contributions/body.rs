//! Contributions as they are written and shown.

use comptoir_domain::{
    asset::Asset,
    contribution::ContributionState,
    id::{AccountId, ContributionId, DatasetId, DatasetVersionId, ReceiptId},
};
use comptoir_store::{
    assets,
    contributions::{self, Contribution},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::{Problem, money::MoneyBody, quoting::no_asset};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewContribution)]
pub(super) struct NewContributionBody {
    /// A ready version of a dataset of yours, listed or not. Its files that have rows count.
    #[schema(value_type = String, example = "dsv_01h455vb4pex5vsknk084sn02q")]
    pub version: DatasetVersionId,
    /// Words to the owner.
    #[schema(max_length = 4096)]
    pub note: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ContributionAcceptance)]
pub(super) struct AcceptanceBody {
    /// What you expect to pay, as the contribution says.
    pub expected_reward: MoneyBody,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ContributionRejection)]
pub(super) struct Rejection {
    /// Why; the contributor reads it.
    #[schema(min_length = 1, max_length = 1000)]
    pub reason: String,
}

#[derive(Deserialize, ToSchema, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ContributionFilter {
    /// Those in this state alone.
    pub state: Option<ContributionState>,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ContributionObject {
    Contribution,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Contribution)]
pub(super) struct ContributionBody {
    #[schema(value_type = String, example = "con_01h455vb4pex5vsknk084sn02q")]
    id: ContributionId,
    object: ContributionObject,
    pub state: ContributionState,
    /// The dataset that it is offered to.
    #[schema(value_type = String)]
    dataset: DatasetId,
    /// Whose that is.
    #[schema(value_type = String)]
    owner: AccountId,
    #[schema(value_type = String)]
    contributor: AccountId,
    /// What is offered: the owner reads its files for as long as the contribution is pending, and for good once it is accepted.
    #[schema(value_type = String)]
    version: DatasetVersionId,
    /// The dataset of that version.
    #[schema(value_type = String)]
    source: DatasetId,
    /// Which terms it was made under.
    terms_number: u32,
    /// What contributors get of later sales under these, in millionths of the seller's side.
    pool_ppm: u32,
    /// Files that have rows.
    files: u32,
    pub rows: u64,
    /// What it earns when it is accepted.
    reward: MoneyBody,
    /// The contributor's words.
    #[schema(required = true)]
    note: Option<String>,
    /// Why it was rejected.
    #[schema(required = true)]
    reason: Option<String>,
    /// The receipt of the reward.
    #[schema(required = true, value_type = Option<String>)]
    receipt: Option<ReceiptId>,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    /// Until when the owner answers.
    #[serde(with = "time::serde::rfc3339")]
    answer_due_at: OffsetDateTime,
    /// When it was accepted, rejected, withdrawn, or lapsed.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    ended_at: Option<OffsetDateTime>,
}

impl ContributionBody {
    pub(super) fn new(it: Contribution, asset: &Asset) -> Self {
        Self {
            id: it.id,
            object: ContributionObject::Contribution,
            state: it.state,
            dataset: it.dataset,
            owner: it.owner,
            contributor: it.account,
            version: it.version,
            source: it.source,
            terms_number: it.terms_number,
            pool_ppm: it.pool_ppm,
            files: it.files,
            rows: it.rows,
            reward: MoneyBody::new(it.reward, asset),
            note: it.note,
            reason: it.reason,
            receipt: it.receipt,
            created_at: it.created_at,
            answer_due_at: it.answer_due_at,
            ended_at: it.ended_at,
        }
    }

    pub(super) async fn read(
        connection: &mut PgConnection,
        id: ContributionId,
    ) -> Result<Self, Problem> {
        let found = contributions::find(connection, id).await?;
        let found = found.ok_or_else(Problem::not_found)?;
        let asset = assets::find(connection, found.asset_id)
            .await
            .map_err(no_asset)?;
        Ok(Self::new(found, &asset))
    }
}
