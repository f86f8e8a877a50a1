//! What a buyer took of an offer: how far it is, and what it costs when it ends.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::job::state::text_enum;

text_enum! {
    /// Where a purchase stands. The last four are final.
    PurchaseState {
        /// The seller has not answered; the price is held.
        Requested = "requested",
        /// The buyer has its right; the price is held still.
        Granted = "granted",
        /// It is charged, for good.
        Settled = "settled",
        /// All of the price went back, and the right with it.
        Refunded = "refunded",
        /// The seller said no; the price went back.
        Denied = "denied",
        /// The seller said nothing in time; the price went back.
        Lapsed = "lapsed",
    }
}

text_enum! {
    /// What a right is worth now.
    EntitlementState {
        /// It begins later: the next period of a rental or a subscription.
        Upcoming = "upcoming",
        /// It holds.
        Active = "active",
        /// Its time is over, or it was ended early.
        Expired = "expired",
        /// Its purchase was refunded.
        TakenBack = "taken_back",
    }
}

text_enum! {
    /// Where a subscription stands.
    SubscriptionState {
        /// It renews itself.
        Active = "active",
        /// It lasts until the end of its period.
        Ending = "ending",
        /// It is over.
        Ended = "ended",
    }
}

text_enum! {
    /// Why a subscription ends.
    SubscriptionEnd {
        /// Its subscriber wished so.
        Cancelled = "cancelled",
        /// A period costs more than the subscriber allowed.
        PriceAboveCap = "price_above_cap",
        /// The balance did not cover the next period.
        InsufficientFunds = "insufficient_funds",
        /// The seller closed the offer.
        OfferClosed = "offer_closed",
        /// The seller took the dataset off the list.
        Withdrawn = "withdrawn",
        /// The subscriber's address asked the contract to leave.
        Leaving = "leaving",
        /// The seller refused the request, or did not answer it.
        Refused = "refused",
        /// The dataset was taken down.
        TakenDown = "taken_down",
        /// The seller is frozen.
        SellerFrozen = "seller_frozen",
        /// The subscriber is frozen.
        Frozen = "frozen",
        /// The key that it was made with may not spend so much any more.
        SpendLimit = "spend_limit",
        /// The subscriber has the dataset for good by now.
        Owned = "owned",
    }
}

/// For how long, in seconds, the price of something that is bought for good stays held while nothing of it is read: a first download that cannot
/// start gives it back. Seven days.
pub const DELIVERY_SECONDS: u32 = 604_800;

text_enum! {
    /// What made a sale final.
    Finality {
        /// It costs nothing.
        AtOnce = "at_once",
        /// The first byte was served.
        Served = "served",
        /// Nothing was read while its price was held.
        WindowOver = "window_over",
        /// The time that was paid for is over.
        TimeOver = "time_over",
        /// The buyer ended it early.
        EndedByBuyer = "ended_by_buyer",
        /// The buyer's address asked the contract to leave.
        BuyerLeft = "buyer_left",
        /// The dataset was taken down.
        TakenDown = "taken_down",
    }
}

impl Finality {
    /// Did the buyer choose this end? Then the least time of what was read is paid for.
    #[must_use]
    pub const fn is_buyers_choice(self) -> bool {
        match self {
            Self::EndedByBuyer | Self::BuyerLeft => true,
            Self::AtOnce | Self::Served | Self::WindowOver | Self::TimeOver | Self::TakenDown => {
                false
            }
        }
    }
}
