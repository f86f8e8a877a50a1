//! Takedowns: somebody says that a dataset must not be here, an operator freezes it, its seller answers, and a clock decides where nobody does.
//!
//! The states and the second clock follow the notice and counter-notice of 17 U.S.C. § 512(c) and (g): what a seller contests is put back 10 to 14
//! business days later unless the claimant goes to court; 14 days are within that. The first clock is ours.

use serde::{Deserialize, Serialize};
use time::Duration;
use utoipa::ToSchema;

use crate::job::state::text_enum;

/// How long a seller has to contest a freeze; then the takedown is upheld.
pub const CONTESTED_WITHIN: Duration = Duration::days(14);
/// How long a takedown that is contested waits for an operator; then it is rejected.
pub const DECIDED_WITHIN: Duration = Duration::days(14);
/// Longest words of either side, in bytes.
pub const STATEMENT_BYTES_MAX: usize = 8_192;
/// Most takedowns of one account that no operator has looked at.
pub const OPEN_MAX: i64 = 20;

text_enum! {
    /// Why a dataset must not be here.
    Ground {
        /// It holds works of somebody who did not allow it.
        Copyright = "copyright",
        /// It holds data of persons who did not allow it.
        PersonalData = "personal_data",
        /// To hold it, or to hand it out, is against a law.
        Illegal = "illegal",
        /// It harms who reads it.
        Malware = "malware",
        /// The statement says it.
        Other = "other",
    }
}

text_enum! {
    /// Where a takedown stands. The last four are final.
    TakedownState {
        /// No operator has looked at it; nothing changed.
        Filed = "filed",
        /// The dataset is blocked; its seller has 14 days to contest that.
        Frozen = "frozen",
        /// It is contested: the dataset stays blocked, and an operator has 14 days to decide.
        Contested = "contested",
        /// The dataset stays blocked for good.
        Upheld = "upheld",
        /// The dataset is back.
        Rejected = "rejected",
        /// No operator saw a reason to freeze it.
        Dismissed = "dismissed",
        /// Whoever filed it took it back.
        Withdrawn = "withdrawn",
    }
}

/// What is done with a takedown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// An operator blocks the dataset.
    Freeze,
    /// An operator sees no reason to.
    Dismiss,
    /// The seller contests it.
    Contest,
    /// An operator, or the first clock, says that it is right.
    Uphold,
    /// An operator, or the second clock, says that it is wrong.
    Reject,
    /// Whoever filed it takes it back, before an operator has looked at it.
    Withdraw,
}

impl TakedownState {
    /// What it is after the act; `None` where that cannot be done to it.
    #[must_use]
    pub const fn after(self, act: Act) -> Option<Self> {
        match (self, act) {
            (Self::Filed, Act::Freeze) => Some(Self::Frozen),
            (Self::Filed, Act::Dismiss) => Some(Self::Dismissed),
            (Self::Frozen, Act::Contest) => Some(Self::Contested),
            (Self::Frozen | Self::Contested, Act::Uphold) => Some(Self::Upheld),
            (Self::Frozen | Self::Contested, Act::Reject) => Some(Self::Rejected),
            // What an operator decided, only an operator takes back.
            (Self::Filed, Act::Withdraw) => Some(Self::Withdrawn),
            (
                Self::Filed
                | Self::Frozen
                | Self::Contested
                | Self::Upheld
                | Self::Rejected
                | Self::Dismissed
                | Self::Withdrawn,
                _,
            ) => None,
        }
    }

    /// What happens when its clock has run out; `None` where none runs.
    #[must_use]
    pub const fn overdue(self) -> Option<Act> {
        match self {
            Self::Frozen => Some(Act::Uphold),
            Self::Contested => Some(Act::Reject),
            Self::Filed | Self::Upheld | Self::Rejected | Self::Dismissed | Self::Withdrawn => None,
        }
    }

    /// How long it may stay so before its clock has run out.
    #[must_use]
    pub const fn lasts(self) -> Option<Duration> {
        match self {
            Self::Frozen => Some(CONTESTED_WITHIN),
            Self::Contested => Some(DECIDED_WITHIN),
            Self::Filed | Self::Upheld | Self::Rejected | Self::Dismissed | Self::Withdrawn => None,
        }
    }

    /// Is nothing more done with it?
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Filed | Self::Frozen | Self::Contested => false,
            Self::Upheld | Self::Rejected | Self::Dismissed | Self::Withdrawn => true,
        }
    }
}

impl Act {
    /// The act in the past, as the state that it leads to is called.
    #[must_use]
    pub const fn leads_to(self) -> TakedownState {
        match self {
            Self::Freeze => TakedownState::Frozen,
            Self::Dismiss => TakedownState::Dismissed,
            Self::Contest => TakedownState::Contested,
            Self::Uphold => TakedownState::Upheld,
            Self::Reject => TakedownState::Rejected,
            Self::Withdraw => TakedownState::Withdrawn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [TakedownState; 7] = [
        TakedownState::Filed,
        TakedownState::Frozen,
        TakedownState::Contested,
        TakedownState::Upheld,
        TakedownState::Rejected,
        TakedownState::Dismissed,
        TakedownState::Withdrawn,
    ];
    const ACTS: [Act; 6] = [
        Act::Freeze,
        Act::Dismiss,
        Act::Contest,
        Act::Uphold,
        Act::Reject,
        Act::Withdraw,
    ];

    #[test]
    fn an_act_leads_to_its_own_state_or_cannot_be_done() {
        for state in STATES {
            for act in ACTS {
                let after = state.after(act);
                assert!(
                    after.is_none_or(|it| it == act.leads_to()),
                    "{state} {act:?}"
                );
                assert!(!state.is_final() || after.is_none(), "{state} {act:?}");
            }
        }
    }

    #[test]
    fn a_clock_runs_while_somebody_is_to_answer_and_its_end_can_be_done() {
        for state in STATES {
            assert_eq!(
                state.lasts().is_some(),
                state.overdue().is_some(),
                "{state}"
            );
            let end = state.overdue().map(|act| state.after(act));
            assert_ne!(end, Some(None), "{state}");
        }
        assert_eq!(TakedownState::Frozen.overdue(), Some(Act::Uphold));
        assert_eq!(TakedownState::Contested.overdue(), Some(Act::Reject));
    }
}
