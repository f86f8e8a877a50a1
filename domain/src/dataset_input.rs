//! Datasets as inputs of jobs: under which right a job reads one, and on what terms.

use time::{Duration, OffsetDateTime};

use crate::{bill::DataPrice, digest::Sha256, id::TakedownId};

/// How long results wait for the seller of a dataset, who may release them; then they are denied.
pub const RELEASE_WITHIN: Duration = Duration::days(7);

/// Until when the results of a job that completed then may be released.
#[must_use]
pub const fn release_due_at(completed_at: OffsetDateTime) -> OffsetDateTime {
    completed_at.saturating_add(RELEASE_WITHIN)
}

/// On what terms jobs compute on a dataset that is not handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComputeTerms {
    /// What a job costs.
    pub price: DataPrice,
    /// The programs that may compute on it; `None`: any.
    pub programs: Option<Vec<Sha256>>,
    /// The most bytes that a job's results may have.
    pub output_bytes_max: u64,
    /// Do results wait for the seller's consent?
    pub is_released_by_seller: bool,
}

/// How an account stands to a version of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What blocks the dataset, if it is blocked: then nobody reads it.
    pub blocked_by: Option<TakedownId>,
    /// Is it the seller's own, or may the account download it? Then jobs on it cost nothing extra.
    pub may_read: bool,
    /// The terms that the account may compute under, if there are any.
    pub terms: Option<ComputeTerms>,
    /// Did the account have a right that has ended?
    pub had_right: bool,
}

/// Why a job may not read a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRight {
    /// The dataset is blocked.
    #[error("{0} blocks the dataset")]
    Blocked(TakedownId),
    /// The account never had a right.
    #[error("the account has no right to compute on the dataset")]
    NotEntitled,
    /// The account's right has ended.
    #[error("the account's right to the dataset has ended")]
    Ended,
    /// The seller did not name the program.
    #[error("the dataset's seller does not let this program compute on it")]
    Program,
}

impl Standing {
    /// On what terms a job of this program reads the version; `None`: on none, since the account may read it anyhow.
    ///
    /// # Errors
    /// When it may not.
    pub fn judge(self, program: Sha256) -> Result<Option<ComputeTerms>, NoRight> {
        if let Some(takedown) = self.blocked_by {
            return Err(NoRight::Blocked(takedown));
        }
        match self.terms {
            _ if self.may_read => Ok(None),
            Some(terms) => {
                let named = terms.programs.as_ref();
                let may_run = named.is_none_or(|it| it.contains(&program));
                may_run.then_some(Some(terms)).ok_or(NoRight::Program)
            }
            None if self.had_right => Err(NoRight::Ended),
            None => Err(NoRight::NotEntitled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{amount::Amount, id::OfferId};

    fn terms() -> ComputeTerms {
        let price = DataPrice {
            offer: OfferId::generate(),
            number: 1,
            price: Amount::from_base(7).unwrap(),
            platform_ppm: 0,
        };
        ComputeTerms {
            price,
            programs: Some(vec![Sha256::of(b"known")]),
            output_bytes_max: 1,
            is_released_by_seller: false,
        }
    }

    #[test]
    fn who_may_read_computes_for_nothing_with_any_program() {
        let standing = Standing {
            blocked_by: None,
            may_read: true,
            terms: Some(terms()),
            had_right: true,
        };
        assert_eq!(standing.judge(Sha256::of(b"any")), Ok(None));
    }

    #[test]
    fn others_compute_on_the_offers_terms_or_are_told_why_not() {
        let judge = |terms, had_right, program: &[u8]| {
            let may_read = false;
            let standing = Standing {
                blocked_by: None,
                may_read,
                terms,
                had_right,
            };
            standing.judge(Sha256::of(program))
        };
        let it = terms();
        assert_eq!(judge(Some(it.clone()), true, b"known"), Ok(Some(it)));
        assert_eq!(judge(Some(terms()), false, b"any"), Err(NoRight::Program));
        assert_eq!(judge(None, true, b"known"), Err(NoRight::Ended));
        assert_eq!(judge(None, false, b"known"), Err(NoRight::NotEntitled));
    }

    #[test]
    fn nobody_computes_on_what_is_blocked() {
        let takedown = TakedownId::generate();
        let standing = Standing {
            blocked_by: Some(takedown),
            may_read: true,
            terms: Some(terms()),
            had_right: true,
        };
        let judged = standing.judge(Sha256::of(b"known"));
        assert_eq!(judged, Err(NoRight::Blocked(takedown)));
    }
}
