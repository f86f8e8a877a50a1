//! A wait that doubles, in blocks: nothing changes at the contract without one.

/// The longest wait: 13 minutes of mainnet.
const BLOCKS_MAX: u64 = 64;

/// What is not tried again before some blocks have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hold {
    until: u64,
    blocks: u64,
}

impl Hold {
    /// Is it too early, at this head, to try again?
    pub(crate) const fn stands(self, head: u64) -> bool {
        head < self.until
    }

    /// It failed again at this head: waits twice as long as last time.
    pub(crate) fn lengthen(&mut self, head: u64) {
        self.blocks = (self.blocks * 2).clamp(1, BLOCKS_MAX);
        self.until = head + self.blocks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_wait_up_to_the_longest() {
        let mut hold = Hold::default();
        assert!(!hold.stands(0));
        let mut head = 100;
        let mut waits = Vec::new();
        for _ in 0..9 {
            hold.lengthen(head);
            let wait = (0..1_000).find(|wait| !hold.stands(head + wait)).unwrap();
            waits.push(wait);
            head += wait;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
    }
}
