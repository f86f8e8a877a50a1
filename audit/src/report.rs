//! What an audit says: each check, how it came out, and why.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::value::Hash;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not hold: the batch is false.
    Failed,
    /// What it needs is not there.
    NotProvable,
}

impl Outcome {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotProvable => "not_provable",
        }
    }
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// The file is in its one canonical form.
    Form,
    /// The file's SHA-256 is the header's `dataHash`.
    DataHash,
    /// The file is of the chain and the contract that were asked about.
    Contract,
    /// Number, generation, parent, last deposit and count of receipts are the header's.
    Heading,
    /// Receipts are numbered, named once and of this batch; accounts stand in order, each once.
    Order,
    /// Every receipt is of a kind that is known, and what is no charge hides nothing.
    Kinds,
    /// The receipts make the receipts root.
    ReceiptsRoot,
    /// The accounts make the accounts root.
    AccountsRoot,
    /// The accounts add up to the totals.
    Totals,
    /// What is payable and available is what was deposited.
    Balance,
    /// The header made of the leaves has the hash that the contract holds.
    HeaderHash,
    /// The shares of each receipt are its gross, but for the dust of their carry.
    Shares,
    /// The shares are those of their bill, computed again by carry.
    Carry,
    /// The batch before is the one that the contract held.
    Parent,
    /// No account's payable or deposits are lower than in the batch before, and none is gone.
    NeverShrinks,
    /// No receipt was in any batch before.
    SettledOnce,
    /// Each account's deposits are those of the contract's events.
    Deposits,
    /// What each account has more or less than before is its deposits, earnings and charges.
    Changes,
}

impl Check {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::DataHash => "data_hash",
            Self::Contract => "contract",
            Self::Heading => "heading",
            Self::Order => "order",
            Self::Kinds => "kinds",
            Self::ReceiptsRoot => "receipts_root",
            Self::AccountsRoot => "accounts_root",
            Self::Totals => "totals",
            Self::Balance => "balance",
            Self::HeaderHash => "header_hash",
            Self::Shares => "shares",
            Self::Carry => "carry",
            Self::Parent => "parent",
            Self::NeverShrinks => "never_shrinks",
            Self::SettledOnce => "settled_once",
            Self::Deposits => "deposits",
            Self::Changes => "changes",
        }
    }

    /// Must it pass before a batch can be called right? The shares by carry need bills, which only payers and payees have.
    #[must_use]
    pub const fn is_essential(self) -> bool {
        !matches!(self, Self::Carry)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One check of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: Check,
    /// How it came out.
    pub outcome: Outcome,
    /// Why, with the values.
    pub detail: String,
}

/// What to think of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything that must hold was proven.
    Right,
    /// Something does not hold.
    False,
    /// Nothing is wrong, and something could not be proven.
    Undecided,
}

impl Verdict {
    /// The text form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::False => "false",
            Self::Undecided => "undecided",
        }
    }
}

/// All checks of one batch.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// In the order in which they were made.
    pub findings: Vec<Finding>,
}

impl Report {
    /// What follows from the findings.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let any = |outcome| {
            move |finding: &Finding| finding.outcome == outcome && finding.check.is_essential()
        };
        if self.failed().next().is_some() {
            Verdict::False
        } else if self.findings.is_empty() || self.findings.iter().any(any(Outcome::NotProvable)) {
            Verdict::Undecided
        } else {
            Verdict::Right
        }
    }

    /// What failed.
    pub fn failed(&self) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.outcome == Outcome::Failed)
    }

    /// The finding of a check, when it was made.
    #[must_use]
    pub fn of(&self, check: Check) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.check == check)
    }

    /// What is wrong, or else what is missing, in one line.
    #[must_use]
    pub fn reason(&self) -> String {
        let wanted = match self.verdict() {
            Verdict::Right => return "every check passed".to_owned(),
            Verdict::False => Outcome::Failed,
            Verdict::Undecided => Outcome::NotProvable,
        };
        let told: Vec<_> = self
            .findings
            .iter()
            .filter(|finding| finding.outcome == wanted)
            // What fails makes the batch false, essential or not.
            .filter(|finding| wanted == Outcome::Failed || finding.check.is_essential())
            .map(|finding| format!("{}: {}", finding.check, finding.detail))
            .collect();
        told.join("; ")
    }

    pub(crate) fn add(&mut self, check: Check, outcome: Outcome, detail: impl Into<String>) {
        self.findings.push(Finding {
            check,
            outcome,
            detail: detail.into(),
        });
    }

    /// Passed with `right`, or failed with what is wrong.
    pub(crate) fn judge(&mut self, check: Check, wrong: Option<String>, right: impl Into<String>) {
        match wrong {
            Some(wrong) => self.add(check, Outcome::Failed, wrong),
            None => self.add(check, Outcome::Passed, right),
        }
    }

    /// Two values that must be one.
    pub(crate) fn compare(
        &mut self,
        check: Check,
        what: &str,
        computed: impl fmt::Display,
        committed: impl fmt::Display,
    ) {
        let (computed, committed) = (computed.to_string(), committed.to_string());
        let wrong = (computed != committed)
            .then(|| format!("{what} is {committed} as committed and {computed} as computed"));
        self.judge(check, wrong, computed);
    }

    pub(crate) fn unproven(&mut self, check: Check, why: &str) {
        self.add(check, Outcome::NotProvable, why);
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
