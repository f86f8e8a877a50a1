//! Bodies of what was used.

use comptoir_domain::{
    asset::Asset,
    atto::Atto,
    id::{ApiKeyId, CallId, ModelId, ModelVersionId, ReceiptId, UsageWindowId, WorkerId},
    usage::{Counted, UsageRecord},
};
use comptoir_store::usage::{UsageSum, UsageWindow};
use serde::Serialize;
use time::{Duration, OffsetDateTime};
use utoipa::ToSchema;

use super::UsageWindowState;
use crate::money::MoneyBody;

/// What something costs, before it is rounded.
#[derive(Serialize, ToSchema)]
pub(super) struct CostBody {
    /// Base units of the token, exactly.
    #[schema(example = "7.000000000000000001")]
    cost_base: String,
    /// The same in atto base units (10^-18 of a base unit).
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]*)$", example = "7000000000000000001")]
    cost_atto: Atto,
}

impl From<Atto> for CostBody {
    fn from(cost: Atto) -> Self {
        Self {
            cost_base: cost.base_units(),
            cost_atto: cost,
        }
    }
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum UsageSumObject {
    UsageSum,
}

/// A sum of what was used.
#[derive(Serialize, ToSchema)]
#[schema(as = UsageSum)]
pub(super) struct UsageSumBody {
    object: UsageSumObject,
    /// Calls that were answered then or later.
    #[serde(with = "time::serde::rfc3339")]
    from: OffsetDateTime,
    /// Calls that were answered before.
    #[serde(with = "time::serde::rfc3339")]
    to: OffsetDateTime,
    /// The API key; `null` of calls without one, and where sums are not made for keys.
    #[schema(required = true, value_type = Option<String>)]
    key_id: Option<ApiKeyId>,
    /// The model; `null` where sums are not made for models.
    #[schema(required = true, value_type = Option<String>)]
    model_id: Option<ModelId>,
    /// The version; `null` where sums are not made for versions.
    #[schema(required = true, value_type = Option<String>)]
    version_id: Option<ModelVersionId>,
    #[serde(flatten)]
    counted: Counted,
    #[serde(flatten)]
    cost: CostBody,
}

impl UsageSumBody {
    pub(super) fn new(it: &UsageSum, length: Duration) -> Self {
        Self {
            object: UsageSumObject::UsageSum,
            from: it.place.from,
            to: it.place.from.saturating_add(length),
            key_id: it.place.key,
            model_id: it.place.model,
            version_id: it.place.version,
            counted: it.counted,
            cost: it.cost.into(),
        }
    }
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum UsageEventObject {
    UsageEvent,
}

/// A call that was answered.
#[derive(Serialize, ToSchema)]
#[schema(as = UsageEvent)]
pub(super) struct UsageEventBody {
    #[schema(value_type = String, example = "call_01h455vb4pex5vsknk084sn02q")]
    id: CallId,
    object: UsageEventObject,
    /// When it was answered.
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    /// The window that it is charged in; `null`: it was free.
    #[schema(required = true, value_type = Option<String>)]
    window_id: Option<UsageWindowId>,
    /// The API key that made it.
    #[schema(required = true, value_type = Option<String>)]
    key_id: Option<ApiKeyId>,
    #[schema(value_type = String)]
    model_id: ModelId,
    #[schema(value_type = String)]
    version_id: ModelVersionId,
    /// Which of the model's prices.
    price_number: u32,
    /// The worker that ran it.
    #[schema(value_type = String)]
    worker_id: WorkerId,
    rows: u64,
    input_tokens: u64,
    output_tokens: u64,
    /// Multiply-adds.
    #[schema(pattern = "^(0|[1-9][0-9]*)$")]
    madds: String,
    #[serde(flatten)]
    cost: CostBody,
    /// How long it took, in microseconds: shown, never charged.
    duration_us: u32,
}

impl UsageEventBody {
    pub(super) fn new(it: &UsageRecord) -> Self {
        Self {
            id: it.call,
            object: UsageEventObject::UsageEvent,
            at: it.at,
            window_id: it.window,
            key_id: it.key,
            model_id: it.model,
            version_id: it.version,
            price_number: it.price,
            worker_id: it.worker,
            rows: it.usage.rows,
            input_tokens: it.usage.input_tokens,
            output_tokens: it.usage.output_tokens,
            madds: it.usage.madds.to_string(),
            cost: it.cost.into(),
            duration_us: it.duration_us,
        }
    }
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum UsageWindowObject {
    UsageWindow,
}

/// Calls that are charged together.
#[derive(Serialize, ToSchema)]
#[schema(as = UsageWindow)]
pub(super) struct UsageWindowBody {
    #[schema(value_type = String, example = "uwn_01h455vb4pex5vsknk084sn02q")]
    id: UsageWindowId,
    object: UsageWindowObject,
    #[schema(inline)]
    state: UsageWindowState,
    /// The API key that the calls were made with.
    #[schema(required = true, value_type = Option<String>)]
    key_id: Option<ApiKeyId>,
    #[schema(value_type = String)]
    model_id: ModelId,
    #[schema(value_type = String)]
    version_id: ModelVersionId,
    /// Which of the model's prices.
    price_number: i32,
    #[serde(flatten)]
    counted: Counted,
    #[serde(flatten)]
    cost: CostBody,
    /// What was charged: the whole base units that the payer's use of this price passed; `null` while it is open.
    #[schema(required = true)]
    charged: Option<MoneyBody>,
    /// The receipt of that; `null` where nothing was charged.
    #[schema(required = true, value_type = Option<String>)]
    receipt_id: Option<ReceiptId>,
    /// When its first call was answered.
    #[serde(with = "time::serde::rfc3339")]
    opened_at: OffsetDateTime,
    /// When it was charged.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    closed_at: Option<OffsetDateTime>,
}

impl UsageWindowBody {
    pub(super) fn new(it: &UsageWindow, asset: &Asset) -> Self {
        Self {
            id: it.id,
            object: UsageWindowObject::UsageWindow,
            state: match it.closed_at {
                None => UsageWindowState::Open,
                Some(_) => UsageWindowState::Charged,
            },
            key_id: it.key,
            model_id: it.model,
            version_id: it.version,
            price_number: it.price_number,
            counted: it.counted,
            cost: it.cost.into(),
            charged: it.charged.map(|it| MoneyBody::new(it, asset)),
            receipt_id: it.receipt,
            opened_at: it.opened_at,
            closed_at: it.closed_at,
        }
    }
}
