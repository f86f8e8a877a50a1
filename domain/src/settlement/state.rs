//! The states of a batch. They follow what the contract holds for the batch's number at the head, at the safe and at the
//! final block; what a node says of a transaction is a hint at most.

/// Where a batch is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BatchState {
    /// Its leaves are published, its header is fixed.
    Sealed,
    /// The bytes that commit it are stored.
    Signed,
    /// A node was given the bytes.
    Broadcast,
    /// The contract holds it at the head.
    Mined,
    /// The contract holds it at the safe block.
    Safe,
    /// The contract holds it, and that is final.
    Anchored,
    /// Its window has passed: claims can be proven against it.
    Claimable,
    /// The guardian vetoed it; its receipts go into another.
    Cancelled,
    /// The contract holds what it cannot hold. A person has to look.
    Halted,
}

/// What the contract holds for the number of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Nothing: not committed yet, or vetoed.
    Empty,
    /// This batch.
    Own,
    /// Some other batch.
    Other,
}

/// What was read of the contract about a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// At the newest block.
    pub head: Slot,
    /// At the safe block.
    pub safe: Slot,
    /// At the final block.
    pub final_: Slot,
    /// Has the window passed, at the final block?
    pub active: bool,
    /// Is the number of cancellations, at the final block, higher than the batch's?
    pub cancelled: bool,
}

impl BatchState {
    const ALL: [Self; 9] = [
        Self::Sealed,
        Self::Signed,
        Self::Broadcast,
        Self::Mined,
        Self::Safe,
        Self::Anchored,
        Self::Claimable,
        Self::Cancelled,
        Self::Halted,
    ];

    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Signed => "signed",
            Self::Broadcast => "broadcast",
            Self::Mined => "mined",
            Self::Safe => "safe",
            Self::Anchored => "anchored",
            Self::Claimable => "claimable",
            Self::Cancelled => "cancelled",
            Self::Halted => "halted",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Does nothing follow?
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Claimable | Self::Cancelled | Self::Halted)
    }

    /// Does the contract hold it for good, unless the guardian vetoes it within its window?
    #[must_use]
    pub const fn is_anchored(self) -> bool {
        matches!(self, Self::Anchored | Self::Claimable)
    }

    /// The state that follows from what was seen.
    #[must_use]
    pub const fn observe(self, seen: &Seen) -> Self {
        if self.is_terminal() {
            return self;
        }
        match (seen.final_, seen.safe, seen.head) {
            (Slot::Own, _, _) if seen.active => Self::Claimable,
            (Slot::Own, _, _) => Self::Anchored,
            // A later generation has the number now, or nobody has it yet.
            _ if seen.cancelled => Self::Cancelled,
            (Slot::Other, _, _) => Self::Halted,
            (Slot::Empty, Slot::Own, _) => Self::Safe,
            (Slot::Empty, _, Slot::Own) => Self::Mined,
            (Slot::Empty, _, _) => match self {
                // What was final is gone, and nobody cancelled it.
                Self::Anchored => Self::Halted,
                Self::Mined | Self::Safe => Self::Broadcast,
                other => other,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Seen = Seen {
        head: Slot::Empty,
        safe: Slot::Empty,
        final_: Slot::Empty,
        active: false,
        cancelled: false,
    };

    #[test]
    fn a_batch_rises_with_the_block_that_holds_it() {
        let mut seen = NOWHERE;
        let mut state = BatchState::Broadcast.observe(&seen);
        assert_eq!(state, BatchState::Broadcast);
        seen.head = Slot::Own;
        state = state.observe(&seen);
        assert_eq!(state, BatchState::Mined);
        seen.safe = Slot::Own;
        state = state.observe(&seen);
        assert_eq!(state, BatchState::Safe);
        seen.final_ = Slot::Own;
        state = state.observe(&seen);
        assert_eq!(state, BatchState::Anchored);
        seen.active = true;
        assert_eq!(state.observe(&seen), BatchState::Claimable);
    }

    #[test]
    fn a_reorganisation_sends_it_back_to_be_broadcast_again() {
        assert_eq!(BatchState::Mined.observe(&NOWHERE), BatchState::Broadcast);
        assert_eq!(BatchState::Safe.observe(&NOWHERE), BatchState::Broadcast);
    }

    #[test]
    fn a_veto_counts_when_it_is_final() {
        let at_head = Seen {
            safe: Slot::Own,
            final_: Slot::Own,
            ..NOWHERE
        };
        assert_eq!(BatchState::Anchored.observe(&at_head), BatchState::Anchored);
        let final_ = Seen {
            cancelled: true,
            ..NOWHERE
        };
        for state in [
            BatchState::Sealed,
            BatchState::Broadcast,
            BatchState::Mined,
            BatchState::Anchored,
        ] {
            assert_eq!(state.observe(&final_), BatchState::Cancelled);
        }
        let replaced = Seen {
            cancelled: true,
            final_: Slot::Other,
            ..NOWHERE
        };
        assert_eq!(
            BatchState::Broadcast.observe(&replaced),
            BatchState::Cancelled
        );
    }

    #[test]
    fn what_cannot_be_halts() {
        let other = Seen {
            head: Slot::Other,
            safe: Slot::Other,
            final_: Slot::Other,
            ..NOWHERE
        };
        assert_eq!(BatchState::Broadcast.observe(&other), BatchState::Halted);
        assert_eq!(BatchState::Anchored.observe(&NOWHERE), BatchState::Halted);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for state in BatchState::ALL {
            assert_eq!(BatchState::parse(state.as_str()), Some(state));
        }
    }
}
