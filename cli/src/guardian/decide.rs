//! What a guardian does about what it sees: a rule without a clock, a node or a key.

use clap::ValueEnum;

use comptoir_audit::{
    Hash,
    chain::{PAUSE_CLAIMS, PAUSE_COMMITS},
};

/// What is thought of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Every check passed.
    Right,
    /// A check failed.
    False(String),
    /// Nobody serves its leaf file.
    Unavailable(String),
    /// Something needed to judge it is missing, and that is not the batch's fault.
    Undecided(String),
}

/// What is done about a batch that cannot be judged while it can still be vetoed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhenUndecided {
    /// Commits and claims are paused, so that people can look.
    Pause,
    /// It is vetoed as if it were false.
    Veto,
    /// It is only told.
    Alert,
}

/// How a guardian decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Seconds after its commit until a batch without a leaf file is vetoed; half the window where not said.
    pub unavailable_after_s: Option<u64>,
    /// Seconds before its window ends in which a batch that is not judged is acted upon; a quarter of the window where not
    /// said.
    pub margin_s: Option<u64>,
    /// What is then done.
    pub when_undecided: WhenUndecided,
    /// After so many vetoes within one window commits are paused: a settler that goes on is not to be raced. 0: never.
    pub pause_after_vetoes: u32,
    /// Are claims paused when a false batch is past its window?
    pub pause_when_late: bool,
}

/// A batch that the contract holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its number.
    pub id: u64,
    /// Its header's hash.
    pub hash: Hash,
    /// When it was committed.
    pub committed_at: u64,
    /// When its window ends.
    pub active_at: u64,
    /// What is thought of it.
    pub judgement: Judgement,
}

/// All that a decision depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Seconds since 1970, by the chain or the clock, whichever is later.
    pub now: u64,
    /// Seconds in which a batch can be vetoed.
    pub window: u64,
    /// By number: those in their window, and the newest that is not.
    pub held: Vec<Held>,
    /// The bits that are paused.
    pub paused: u8,
    /// Would the contract take a pause? Not so soon after the last one.
    pub may_pause: bool,
    /// Vetoes within the last window.
    pub vetoes: u32,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing is wrong.
    Wait,
    /// The newest batch is vetoed: itself condemned, or in the way of one that is.
    Cancel {
        /// The newest batch.
        id: u64,
        /// Why.
        because: String,
    },
    /// Operations are paused.
    Pause {
        /// Which.
        bits: u8,
        /// Why.
        because: String,
    },
    /// People are told, and nothing else can be done.
    Alert(String),
}

impl Policy {
    /// Decides.
    #[must_use]
    pub fn decide(&self, view: &View) -> Action {
        let in_window = |held: &&Held| view.now < held.active_at;
        let newest = view.held.last().filter(in_window);
        let first = view.held.iter().filter(in_window).find_map(|held| {
            let because = self.condemned(held, view)?;
            Some(format!("batch {} is {because}", held.id))
        });
        if let (Some(newest), Some(because)) = (newest, first) {
            let often = self.pause_after_vetoes > 0 && view.vetoes >= self.pause_after_vetoes;
            if often && view.may_pause && view.paused & PAUSE_COMMITS == 0 {
                return Action::Pause {
                    bits: PAUSE_COMMITS,
                    because: format!("{because}, after {} vetoes", view.vetoes),
                };
            }
            return Action::Cancel {
                id: newest.id,
                because,
            };
        }
        let late = view.held.iter().find(|held| !in_window(held));
        if let Some(held) = late
            && let Judgement::False(why) = &held.judgement
        {
            let because = format!("batch {} is false, and past its window: {why}", held.id);
            return Self::stop(self.pause_when_late, because, view);
        }
        let short = view.held.iter().filter(in_window).find_map(|held| {
            let Judgement::Undecided(why) = &held.judgement else {
                return None;
            };
            let margin = self.margin_s.unwrap_or(view.window / 4);
            let late = held.active_at.saturating_sub(view.now) <= margin;
            late.then(|| format!("batch {} cannot be judged: {why}", held.id))
        });
        match (short, newest) {
            (Some(because), Some(newest)) => match self.when_undecided {
                WhenUndecided::Veto => Action::Cancel {
                    id: newest.id,
                    because,
                },
                WhenUndecided::Pause => Self::stop(true, because, view),
                WhenUndecided::Alert => Action::Alert(because),
            },
            // A service that is down hides nothing: claims go on.
            _ => match late.map(|held| (held.id, &held.judgement)) {
                Some((id, Judgement::Unavailable(why))) => {
                    Action::Alert(format!("batch {id} has no leaf file any more: {why}"))
                }
                _ => Action::Wait,
            },
        }
    }

    /// Why a batch is to be vetoed, if it is.
    fn condemned(&self, held: &Held, view: &View) -> Option<String> {
        match &held.judgement {
            Judgement::False(why) => Some(format!("false: {why}")),
            Judgement::Unavailable(why) => {
                let patience = self.unavailable_after_s.unwrap_or(view.window / 2);
                let waited = view.now.saturating_sub(held.committed_at);
                (waited >= patience)
                    .then(|| format!("without its leaf file for {patience} s: {why}"))
            }
            Judgement::Right | Judgement::Undecided(_) => None,
        }
    }

    fn stop(wanted: bool, because: String, view: &View) -> Action {
        let bits = PAUSE_COMMITS | PAUSE_CLAIMS;
        if wanted && view.may_pause && view.paused & bits != bits {
            Action::Pause { bits, because }
        } else {
            Action::Alert(because)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        unavailable_after_s: None,
        margin_s: None,
        when_undecided: WhenUndecided::Pause,
        pause_after_vetoes: 3,
        pause_when_late: true,
    };
    const BOTH: u8 = PAUSE_COMMITS | PAUSE_CLAIMS;

    fn held(id: u64, judgement: Judgement) -> Held {
        Held {
            id,
            hash: Hash::ZERO,
            committed_at: 1_000 + id,
            active_at: 1_100 + id,
            judgement,
        }
    }

    fn view(now: u64, held: Vec<Held>) -> View {
        View {
            now,
            window: 100,
            held,
            paused: 0,
            may_pause: true,
            vetoes: 0,
        }
    }

    fn wrong() -> Judgement {
        Judgement::False("accounts_root".to_owned())
    }

    fn cancels(action: &Action) -> Option<u64> {
        match action {
            Action::Cancel { id, .. } => Some(*id),
            _ => None,
        }
    }

    fn pauses(action: &Action) -> Option<u8> {
        match action {
            Action::Pause { bits, .. } => Some(*bits),
            _ => None,
        }
    }

    #[test]
    fn a_right_batch_is_left_alone() {
        let held = vec![held(1, Judgement::Right), held(2, Judgement::Right)];
        assert_eq!(POLICY.decide(&view(1_050, held)), Action::Wait);
    }

    #[test]
    fn a_false_batch_is_reached_by_vetoing_the_newer_ones_first() {
        let chain = [
            held(1, wrong()),
            held(2, Judgement::Right),
            held(3, Judgement::Right),
        ];
        for newest in (1..=3).rev() {
            let left = chain[..newest].to_vec();
            let action = POLICY.decide(&view(1_050, left));
            assert_eq!(cancels(&action), Some(newest as u64));
        }
    }

    #[test]
    fn a_batch_without_a_file_is_vetoed_at_half_of_its_window() {
        let hidden = vec![held(1, Judgement::Unavailable("404".to_owned()))];
        assert_eq!(POLICY.decide(&view(1_050, hidden.clone())), Action::Wait);
        assert_eq!(
            cancels(&POLICY.decide(&view(1_051, hidden.clone()))),
            Some(1)
        );
        let hasty = Policy {
            unavailable_after_s: Some(2),
            ..POLICY
        };
        assert_eq!(cancels(&hasty.decide(&view(1_003, hidden))), Some(1));
    }

    #[test]
    fn a_batch_that_cannot_be_judged_is_acted_on_when_time_is_short() {
        let unknown = vec![held(1, Judgement::Undecided("no parent".to_owned()))];
        assert_eq!(POLICY.decide(&view(1_075, unknown.clone())), Action::Wait);
        assert_eq!(
            pauses(&POLICY.decide(&view(1_076, unknown.clone()))),
            Some(BOTH)
        );
        let veto = Policy {
            when_undecided: WhenUndecided::Veto,
            ..POLICY
        };
        assert_eq!(
            cancels(&veto.decide(&view(1_076, unknown.clone()))),
            Some(1)
        );
        let alert = Policy {
            when_undecided: WhenUndecided::Alert,
            ..POLICY
        };
        assert!(matches!(
            alert.decide(&view(1_076, unknown)),
            Action::Alert(_)
        ));
    }

    #[test]
    fn a_false_batch_past_its_window_pauses_what_it_could_pay() {
        let late = vec![held(1, wrong())];
        let seen = view(1_101, late);
        assert_eq!(pauses(&POLICY.decide(&seen)), Some(BOTH));
        let paused = View {
            paused: BOTH,
            ..seen.clone()
        };
        assert!(matches!(POLICY.decide(&paused), Action::Alert(_)));
        let calm = Policy {
            pause_when_late: false,
            ..POLICY
        };
        assert!(matches!(calm.decide(&seen), Action::Alert(_)));
    }

    #[test]
    fn a_service_that_is_down_is_told_and_stops_no_claims() {
        let gone = vec![held(1, Judgement::Unavailable("no answer".to_owned()))];
        let action = POLICY.decide(&view(1_101, gone));
        assert!(matches!(action, Action::Alert(_)));
    }

    #[test]
    fn a_lost_file_of_the_batch_before_does_not_keep_it_from_acting() {
        let lost = Held {
            active_at: 1_010,
            ..held(1, Judgement::Unavailable("404".to_owned()))
        };
        let unknown = held(2, Judgement::Undecided("no file of batch 1".to_owned()));
        let seen = view(1_080, vec![lost, unknown]);
        assert_eq!(pauses(&POLICY.decide(&seen)), Some(BOTH));
    }

    #[test]
    fn a_settler_that_goes_on_after_vetoes_is_paused_and_vetoed_all_the_same() {
        let mut again = view(1_050, vec![held(4, wrong())]);
        again.vetoes = 3;
        assert_eq!(pauses(&POLICY.decide(&again)), Some(PAUSE_COMMITS));
        again.paused = PAUSE_COMMITS;
        assert_eq!(cancels(&POLICY.decide(&again)), Some(4));
        again.paused = 0;
        again.may_pause = false;
        assert_eq!(cancels(&POLICY.decide(&again)), Some(4));
    }
}
