//! Why a job waits: which workers could take it, and what keeps each of the others from it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{JobState, Tier};

/// The first thing that keeps a worker from a job, in the order in which they are asked.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// It is another kind of device.
    Device,
    /// It offers less memory.
    Memory,
    /// It works for a higher rate only.
    PriceFloor,
    /// The job's replicas must run in one numeric class, and this one is in another.
    ClassPeer,
    /// Its owner has another replica of the job.
    OwnerUsed,
    /// Honest workers of its class could not agree about the program, so that it can be held to no result that must be verified.
    UnstableClass,
    /// It was not heard of for a while.
    Offline,
}

/// Why a job stands where it stands, in one stable word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StatusReason {
    /// A worker computes.
    Running,
    /// Results are being compared.
    Verifying,
    /// There are workers for it; others are before it.
    WaitingForTurn,
    /// An attempt failed; the next begins after a pause.
    RetryPause,
    /// No worker has the device or the memory.
    NoWorkerWithCapability,
    /// The published rate is below what every capable worker asks.
    BudgetBelowFloor,
    /// No other worker of the same numeric class is there to confirm the result.
    NoClassPeer,
    /// No worker of another owner is there to confirm the result.
    NoOtherOwner,
    /// Only workers are left in whose numeric class results of the program do not agree, so that none could be verified.
    NoStableClass,
    /// Capable workers exist, and none was heard of for a while.
    WorkersUnhealthy,
}

/// Workers of one class that face the same obstacle, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    /// What keeps them from it; `None`: they could take it now.
    pub obstacle: Option<Obstacle>,
    /// How many there are.
    pub workers: u64,
    /// Of how many owners.
    pub owners: u64,
}

/// What is asked of the workers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Replicas that wait.
    pub replicas: u64,
    /// Must all replicas run in one numeric class?
    pub one_class: bool,
}

impl Demand {
    /// What waiting replicas of a job ask. Training is compared bit by bit, so it stays in one class.
    #[must_use]
    pub fn of(tier: Tier, is_training: bool, replicas: u64) -> Self {
        Self {
            replicas,
            one_class: is_training && tier.is_verified(),
        }
    }
}

/// Why a job of this state waits, by classes of workers. `None` once it has ended.
#[must_use]
pub fn reason(
    state: JobState,
    demand: Demand,
    is_resting: bool,
    classes: &[Vec<Judged>],
) -> Option<StatusReason> {
    match state {
        JobState::Completed | JobState::Failed | JobState::Cancelled | JobState::Expired => None,
        JobState::Verifying if demand.replicas == 0 => Some(StatusReason::Verifying),
        JobState::Queued | JobState::Leased | JobState::Verifying => {
            let waits = (demand.replicas > 0).then(|| why(demand, is_resting, classes));
            match waits {
                None | Some(StatusReason::WaitingForTurn) if state == JobState::Leased => {
                    Some(StatusReason::Running)
                }
                None => Some(StatusReason::WaitingForTurn),
                waits => waits,
            }
        }
    }
}

fn why(demand: Demand, is_resting: bool, classes: &[Vec<Judged>]) -> StatusReason {
    let owners = |class: &[Judged]| {
        class
            .iter()
            .filter(|it| it.obstacle.is_none())
            .map(|it| it.owners)
            .sum::<u64>()
    };
    let in_all: u64 = classes.iter().map(|class| owners(class)).sum();
    let in_one = classes
        .iter()
        .map(|class| owners(class))
        .max()
        .unwrap_or_default();
    let has = |obstacle| {
        classes
            .iter()
            .flatten()
            .any(|it| it.obstacle == Some(obstacle) && it.workers > 0)
    };
    if in_all > 0 {
        return match () {
            () if demand.one_class && in_one < demand.replicas => StatusReason::NoClassPeer,
            () if in_all < demand.replicas => StatusReason::NoOtherOwner,
            () if is_resting => StatusReason::RetryPause,
            () => StatusReason::WaitingForTurn,
        };
    }
    let nearest = [
        (Obstacle::Offline, StatusReason::WorkersUnhealthy),
        (Obstacle::UnstableClass, StatusReason::NoStableClass),
        (Obstacle::OwnerUsed, StatusReason::NoOtherOwner),
        (Obstacle::ClassPeer, StatusReason::NoClassPeer),
        (Obstacle::PriceFloor, StatusReason::BudgetBelowFloor),
    ];
    let nearest = nearest.into_iter().find(|(obstacle, _)| has(*obstacle));
    nearest.map_or(StatusReason::NoWorkerWithCapability, |(_, reason)| reason)
}

impl StatusReason {
    /// A sentence for people.
    #[must_use]
    pub const fn hint(self) -> &'static str {
        match self {
            Self::Running => "A worker computes.",
            Self::Verifying => "Results are being compared.",
            Self::WaitingForTurn => {
                "Workers for this job are there; it starts when one of them is free."
            }
            Self::RetryPause => "An attempt failed; the next one begins after a short pause.",
            Self::NoWorkerWithCapability => {
                "No worker has the device and the memory that this job needs. Wait for one to join, or cancel: the hold goes back in full."
            }
            Self::BudgetBelowFloor => {
                "Capable workers ask for a higher rate than the published one. Wait for others, or cancel: the hold goes back in full."
            }
            Self::NoClassPeer => {
                "The result must be confirmed within one numeric class, and only one owner has workers of it. Wait for another, or submit with tier none."
            }
            Self::NoOtherOwner => {
                "The result must be confirmed by a worker of another owner, and none is there. Wait for one, or submit with tier none."
            }
            Self::NoStableClass => {
                "Workers of the classes that are there do not agree about this program's results, so none could be verified. Wait for workers of another class, or cancel and submit with tier none."
            }
            Self::WorkersUnhealthy => {
                "Capable workers exist, but none was heard of for a minute. They may come back; you can cancel: the hold goes back in full."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: Demand = Demand {
        replicas: 2,
        one_class: true,
    };

    const fn judged(obstacle: Option<Obstacle>, owners: u64) -> Judged {
        Judged {
            obstacle,
            workers: owners,
            owners,
        }
    }

    fn queued(demand: Demand, classes: &[Vec<Judged>]) -> StatusReason {
        reason(JobState::Queued, demand, false, classes).unwrap()
    }

    #[test]
    fn the_nearest_obstacle_is_told() {
        use Obstacle as O;
        use StatusReason as R;
        let all = [
            O::Device,
            O::Memory,
            O::PriceFloor,
            O::ClassPeer,
            O::OwnerUsed,
            O::UnstableClass,
            O::Offline,
        ];
        let told = [
            R::NoWorkerWithCapability,
            R::NoWorkerWithCapability,
            R::BudgetBelowFloor,
            R::NoClassPeer,
            R::NoOtherOwner,
            R::NoStableClass,
            R::WorkersUnhealthy,
        ];
        assert_eq!(queued(TWO, &[]), R::NoWorkerWithCapability);
        for (last, told) in told.into_iter().enumerate() {
            let class = all[..=last]
                .iter()
                .map(|obstacle| judged(Some(*obstacle), 1))
                .collect();
            assert_eq!(queued(TWO, &[class]), told);
        }
    }

    #[test]
    fn a_confirmation_needs_a_second_owner_and_training_one_in_the_same_class() {
        let one_each = [vec![judged(None, 1)], vec![judged(None, 1)]];
        let inference = Demand::of(Tier::Replicated, false, 2);
        assert_eq!(queued(TWO, &one_each), StatusReason::NoClassPeer);
        assert_eq!(queued(inference, &one_each), StatusReason::WaitingForTurn);
        assert_eq!(
            queued(inference, &one_each[..1]),
            StatusReason::NoOtherOwner
        );
        assert_eq!(
            queued(TWO, &[vec![judged(None, 2)]]),
            StatusReason::WaitingForTurn
        );
        assert_eq!(
            queued(Demand::of(Tier::None, true, 1), &one_each),
            StatusReason::WaitingForTurn
        );
    }

    #[test]
    fn what_runs_rests_or_has_ended_says_so() {
        let classes = [vec![judged(None, 2)]];
        let none = Demand {
            replicas: 0,
            one_class: true,
        };
        let one = Demand {
            replicas: 1,
            one_class: true,
        };
        let reason = |state, demand, rests| reason(state, demand, rests, &classes);
        assert_eq!(
            reason(JobState::Leased, none, false),
            Some(StatusReason::Running)
        );
        assert_eq!(
            reason(JobState::Leased, one, false),
            Some(StatusReason::Running)
        );
        assert_eq!(
            reason(JobState::Verifying, none, false),
            Some(StatusReason::Verifying)
        );
        assert_eq!(
            reason(JobState::Queued, one, true),
            Some(StatusReason::RetryPause)
        );
        assert_eq!(reason(JobState::Completed, none, false), None);
    }
}
