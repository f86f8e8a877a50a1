//! What a person should know of. Each alert is told once when it begins and once when it ends, however many steps find it
//! standing, and each has its metric. `docs/alerts.md` says what to do about which.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// 1 while the alert named by its label stands.
const STANDING: &str = "settler_alert";
/// How often the alert named by its label began.
const RAISED: &str = "settler_alerts_total";

/// Something that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alert {
    /// Ledger and chain contradict each other, or the key is used elsewhere: a person has to look.
    SettlingHalted,
    /// The contract would refuse the commit now.
    CommitHeld,
    /// The guardian has paused commits.
    CommitsPaused,
    /// The next base fee is above the most that is offered, or a stuck transaction has reached it.
    FeeCeiling,
    /// The day's spending would pass its ceiling.
    SpendCeiling,
    /// The settler's key cannot pay for its transaction.
    OutOfEther,
    /// Blocks are added and none becomes final.
    FinalityStalled,
    /// The newest block is old, or has been the newest for long: the chain stands still, or what is asked does.
    HeadStale,
    /// The node is on another chain.
    WrongChain,
    /// The nodes contradict each other, and none of them has a majority.
    NodesDisagree,
    /// An endpoint contradicts the majority, or lags behind it.
    EndpointOutvoted,
    /// An endpoint does not answer while others do.
    EndpointFailing,
    /// The node does not answer, or not as it should.
    NodeFailing,
    /// The key does not sign, or signs something else.
    SignerFailing,
    /// A step fails for another reason: the database, the object store.
    StepFailing,
}

impl Alert {
    /// Every alert there is.
    pub const ALL: [Self; 15] = [
        Self::SettlingHalted,
        Self::CommitHeld,
        Self::CommitsPaused,
        Self::FeeCeiling,
        Self::SpendCeiling,
        Self::OutOfEther,
        Self::FinalityStalled,
        Self::HeadStale,
        Self::WrongChain,
        Self::NodesDisagree,
        Self::EndpointOutvoted,
        Self::EndpointFailing,
        Self::NodeFailing,
        Self::SignerFailing,
        Self::StepFailing,
    ];

    /// The label of its metrics and the name in logs and `/readyz`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SettlingHalted => "settling_halted",
            Self::CommitHeld => "commit_held",
            Self::CommitsPaused => "commits_paused",
            Self::FeeCeiling => "fee_ceiling",
            Self::SpendCeiling => "spend_ceiling",
            Self::OutOfEther => "out_of_ether",
            Self::FinalityStalled => "finality_stalled",
            Self::HeadStale => "head_stale",
            Self::WrongChain => "wrong_chain",
            Self::NodesDisagree => "nodes_disagree",
            Self::EndpointOutvoted => "endpoint_outvoted",
            Self::EndpointFailing => "endpoint_failing",
            Self::NodeFailing => "node_failing",
            Self::SignerFailing => "signer_failing",
            Self::StepFailing => "step_failing",
        }
    }

    /// Does it last until a person acts?
    #[must_use]
    pub const fn needs_a_person(self) -> bool {
        match self {
            Self::SettlingHalted
            | Self::SpendCeiling
            | Self::OutOfEther
            | Self::WrongChain
            | Self::NodesDisagree
            | Self::EndpointOutvoted
            | Self::SignerFailing => true,
            Self::CommitHeld
            | Self::CommitsPaused
            | Self::FeeCeiling
            | Self::FinalityStalled
            | Self::HeadStale
            | Self::EndpointFailing
            | Self::NodeFailing
            | Self::StepFailing => false,
        }
    }
}

/// The alerts that stand.
#[derive(Debug, Default)]
pub struct Alerts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    standing: BTreeMap<Alert, String>,
    raised: BTreeMap<Alert, u64>,
}

impl Alerts {
    /// Tells of it, unless it stands already.
    pub(crate) fn raise(&self, alert: Alert, detail: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = alert.name();
        if state.standing.insert(alert, detail.to_owned()).is_some() {
            tracing::debug!(alert = name, detail, "the alert still stands");
            return;
        }
        *state.raised.entry(alert).or_default() += 1;
        if alert.needs_a_person() {
            tracing::error!(alert = name, detail, "alert: a person has to look");
        } else {
            tracing::warn!(alert = name, detail, "alert");
        }
        metrics::gauge!(STANDING, "alert" => name).set(1.0);
        metrics::counter!(RAISED, "alert" => name).increment(1);
    }

    /// Tells that it has ended, if it stood.
    pub(crate) fn clear(&self, alert: Alert) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.standing.remove(&alert).is_some() {
            tracing::info!(alert = alert.name(), "the alert has ended");
        }
        metrics::gauge!(STANDING, "alert" => alert.name()).set(0.0);
    }

    /// Forgets what stood: another process leads now.
    pub(crate) fn clear_all(&self) {
        for alert in Alert::ALL {
            self.clear(alert);
        }
    }

    /// What stands, with what was found last.
    #[must_use]
    pub fn standing(&self) -> Vec<(Alert, String)> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let standing = state.standing.iter();
        standing
            .map(|(alert, detail)| (*alert, detail.clone()))
            .collect()
    }

    /// How often it began.
    #[must_use]
    pub fn raised(&self, alert: Alert) -> u64 {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.raised.get(&alert).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_told_once_until_it_has_ended() {
        let alerts = Alerts::default();
        alerts.raise(Alert::OutOfEther, "first");
        alerts.raise(Alert::OutOfEther, "second");
        assert_eq!(alerts.raised(Alert::OutOfEther), 1);
        assert_eq!(
            alerts.standing(),
            [(Alert::OutOfEther, "second".to_owned())]
        );
        alerts.clear(Alert::OutOfEther);
        assert_eq!(alerts.standing(), []);
        alerts.raise(Alert::OutOfEther, "again");
        assert_eq!(alerts.raised(Alert::OutOfEther), 2);
    }

    #[test]
    fn every_alert_is_in_the_operators_table() {
        let table = include_str!("../../docs/alerts.md");
        for alert in Alert::ALL {
            let row = format!("| `{}` |", alert.name());
            assert!(table.contains(&row), "docs/alerts.md has no row {row}");
        }
    }
}
