//! The command line of the market: what sellers offer and answer, and what buyers take and end.

use clap::{Args, Subcommand, ValueEnum};

use super::ListArgs;

/// What sellers do.
#[derive(Debug, Subcommand)]
pub enum Sell {
    /// Offers a dataset on some terms, which never change; the price may.
    Offer(Box<OfferArgs>),
    /// On what terms a dataset can be had.
    Offers {
        /// The dataset.
        dataset: String,
        #[command(flatten)]
        page: ListArgs,
    },
    /// Gives an offer another price; a higher one of a subscription counts after its notice.
    Price {
        /// The offer.
        offer: String,
        /// How many tokens, such as 12.5.
        tokens: String,
    },
    /// Closes an offer: what was taken stays, and nobody takes it any more.
    CloseOffer {
        /// The offer.
        offer: String,
    },
    /// What others took of your datasets, newest first; `requested` waits for your answer.
    Sales(PurchasesArgs),
    /// Grants what somebody asked for.
    Approve {
        /// The purchase.
        purchase: String,
    },
    /// Denies what somebody asked for; the price is the buyer's again.
    Deny {
        /// The purchase.
        purchase: String,
        /// Why; the buyer reads it.
        #[arg(long)]
        reason: String,
    },
}

/// What buyers do.
#[derive(Debug, Subcommand)]
pub enum Take {
    /// What an offer costs now.
    Quote {
        /// The offer.
        offer: String,
        /// How long a rental is to last, such as 90s, 15m, 2h or 30d.
        #[arg(long = "for", value_parser = seconds)]
        seconds: Option<u32>,
    },
    /// Buys for good.
    Buy(TakeArgs),
    /// Rents by the second, or prolongs a rental.
    Rent {
        #[command(flatten)]
        take: TakeArgs,
        /// For how long, such as 90s, 15m, 2h or 30d.
        #[arg(long = "for", value_parser = seconds)]
        seconds: u32,
    },
    /// Subscribes: every version, for periods that renew themselves until you cancel.
    Subscribe {
        #[command(flatten)]
        take: TakeArgs,
        /// The most that a period may ever cost, in tokens [default: what it costs now].
        #[arg(long)]
        cap: Option<String>,
    },
    /// Asks for an offer whose seller wants to be asked; the price is held until the answer.
    Request {
        #[command(flatten)]
        take: TakeArgs,
        /// Words to the seller.
        #[arg(long)]
        note: Option<String>,
        /// How long a rental is to last, such as 90s, 15m, 2h or 30d.
        #[arg(long = "for", value_parser = seconds)]
        seconds: Option<u32>,
        /// The most that a period of a subscription may ever cost, in tokens [default: what it costs now].
        #[arg(long)]
        cap: Option<String>,
    },
    /// What you have a right to, or had, and until when, newest first.
    Library(LibraryArgs),
    /// What you took, newest first.
    Purchases(PurchasesArgs),
    /// One purchase or sale of yours.
    Purchase {
        /// Its id.
        id: String,
    },
    /// Gives back what you bought for good and read nothing of, while its window is open; or takes back a request of any kind that its seller has not
    /// answered, and with one for a subscription the subscription. All that was held is yours again.
    Refund {
        /// The purchase.
        purchase: String,
    },
    /// Ends a rental, or the running period of a subscription, now: you pay for the seconds used, or the offer's minimum once something was read.
    End {
        /// The purchase.
        purchase: String,
    },
    /// What you subscribe to, newest first.
    Subscriptions(ListArgs),
    /// Changes the most that a period of a subscription may cost.
    Cap {
        /// The subscription.
        subscription: String,
        /// How many tokens, such as 12.5.
        tokens: String,
    },
    /// Ends a subscription with its period.
    Cancel {
        /// The subscription.
        subscription: String,
    },
}

/// What is offered; the API's names in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// For good.
    Buy,
    /// By the second.
    Rent,
    /// By periods that renew themselves.
    Subscribe,
    /// To be computed on by jobs; nobody is given the bytes.
    ComputeOnly,
    /// For good, for nothing.
    Free,
}

impl Kind {
    /// Its name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Buy => "buy",
            Self::Rent => "rent",
            Self::Subscribe => "subscribe",
            Self::ComputeOnly => "compute_only",
            Self::Free => "free",
        }
    }
}

#[derive(Debug, Args)]
pub struct OfferArgs {
    /// The dataset.
    pub dataset: String,
    /// What is offered.
    #[arg(long)]
    pub kind: Kind,
    /// How many tokens: of the purchase, of a second (`rent`), of a period (`subscribe`), of a job (`compute_only`).
    #[arg(long, required_if_eq_any = [("kind", "buy"), ("kind", "rent"), ("kind", "subscribe"), ("kind", "compute_only")])]
    pub price: Option<String>,
    /// Only this version, by its number [default: every version, future ones too].
    #[arg(long)]
    pub number: Option<u32>,
    /// Whoever wants it has to ask, and you answer within this time, such as 1h or 7d.
    #[arg(long, value_parser = seconds)]
    pub answer_within: Option<u32>,
    /// A purchase of which nothing was read can be given back for this long, such as 1h or 7d.
    #[arg(long, value_parser = seconds)]
    pub refund_within: Option<u32>,
    /// The period of a subscription, or the longest rental, such as 1h or 30d.
    #[arg(long, value_parser = seconds)]
    pub period: Option<u32>,
    /// The time that is charged at least once something was read, such as 0, 1h or 1d [default: 1h of `rent`, 1d of `subscribe`].
    #[arg(long, value_parser = seconds)]
    pub minimum: Option<u32>,
    /// SHA-256 of a program that may compute on it; may be repeated [default: any].
    #[arg(long = "program")]
    pub programs: Vec<String>,
    /// The most bytes that the results of a job on it may have.
    #[arg(long)]
    pub output_bytes_max: Option<u64>,
    /// Results of jobs on it wait for your consent.
    #[arg(long)]
    pub released_by_seller: bool,
    /// Makes a repeated command one offer [default: random].
    #[arg(long)]
    pub idempotency_key: Option<String>,
}

/// What is taken, and how much may be paid for it.
#[derive(Debug, Args)]
pub struct TakeArgs {
    /// The offer; or the dataset, where one offer of it fits.
    pub what: String,
    /// Pay up to this many tokens, without asking; refuse above.
    #[arg(long)]
    pub max_price: Option<String>,
    /// Pay what it costs now, without asking. Off a terminal, nothing is paid without this or `--max-price`.
    #[arg(long)]
    pub yes: bool,
    /// Makes a repeated command one purchase [default: random].
    #[arg(long)]
    pub idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub struct LibraryArgs {
    /// Only those in this state: `upcoming`, `active`, `expired`, `taken_back`.
    #[arg(long)]
    pub state: Option<String>,
    #[command(flatten)]
    pub page: ListArgs,
}

#[derive(Debug, Args)]
pub struct PurchasesArgs {
    /// Only those in this state: `requested`, `granted`, `settled`, `refunded`, `denied`, `lapsed`.
    #[arg(long)]
    pub state: Option<String>,
    /// Only those of this dataset.
    #[arg(long)]
    pub dataset: Option<String>,
    #[command(flatten)]
    pub page: ListArgs,
}

/// A time in seconds: a number, with `s`, `m`, `h` or `d` behind it if it is not of seconds.
fn seconds(text: &str) -> Result<u32, String> {
    let unit = text.chars().last().filter(|it| !it.is_ascii_digit());
    let seconds_of = match unit {
        None | Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        Some(_) => return Err("expected a number with s, m, h or d, such as 15m".to_owned()),
    };
    let number = unit.map_or(text, |unit| &text[..text.len() - unit.len_utf8()]);
    let plain = number.bytes().all(|it| it.is_ascii_digit());
    let number = number.parse::<u32>().ok().filter(|_| plain);
    let seconds = number.and_then(|it| it.checked_mul(seconds_of));
    seconds.ok_or_else(|| "expected a whole number with s, m, h or d, such as 15m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_whole_number_with_its_unit() {
        let times = ["90", "90s", "15m", "2h", "30d"].map(|it| seconds(it).unwrap());
        assert_eq!(times, [90, 90, 900, 7_200, 2_592_000]);
        for text in ["", "s", "-1s", "+1s", "1.5h", "1w", "1é", "49711d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
