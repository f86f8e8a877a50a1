//! What both sides of a takedown are told.

use comptoir_domain::{
    id::TakedownId,
    takedown::{Ground, TakedownState as State},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::at;

/// A takedown as it stood when this was written, by the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Takedown {
    #[serde(rename = "takedown")]
    id: Uuid,
    /// What the dataset is called.
    dataset: String,
    /// Why it was filed.
    ground: Ground,
    /// Where it stands.
    state: State,
    /// What an operator said of that.
    reason: Option<String>,
    /// When its clock has run out.
    #[serde(with = "time::serde::rfc3339::option")]
    due_at: Option<OffsetDateTime>,
    /// Is this for who filed it? Those that were written before it was told are for the seller.
    #[serde(default)]
    to_claimant: bool,
}

impl Takedown {
    /// Subject and words for the seller, or for who filed it.
    pub(super) fn words(&self, origin: &str) -> (&'static str, String) {
        let id = TakedownId(self.id);
        let read = format!("{origin}/v1/takedowns/{id}");
        let due_at = self.due_at.as_ref().map(at).unwrap_or_default();
        let (subject, what) = if self.to_claimant {
            self.to_claimant(&due_at)
        } else {
            self.to_seller((id, &read), &due_at)
        };
        let reason = self.reason.as_ref().map(|it| format!("\n\nWhy: {it}"));
        let reason = reason.unwrap_or_default();
        let text = format!("{what}{reason}\n\nTakedown {id}, with what both sides say: {read}");
        (subject, text)
    }

    fn to_seller(&self, (id, read): (TakedownId, &str), due_at: &str) -> (&'static str, String) {
        let Self {
            dataset,
            ground,
            state,
            ..
        } = self;
        match state {
            State::Filed => (
                "Somebody wants your dataset to be taken down",
                format!(
                    "Somebody says that your dataset {dataset} must not be here ({ground}). Nothing has changed yet: an operator will look at it,\n\
                     and you are told what becomes of it."
                ),
            ),
            State::Frozen => (
                "Your dataset was taken down",
                format!(
                    "Your dataset {dataset} is blocked ({ground}): nobody reads, buys or computes on it, and what it earns is held back.\n\n\
                     If that is wrong, contest it until {due_at} (`comptoir dataset contest {id}`, or POST {read}/contest).\n\
                     After that it stays blocked for good, and what is held back goes to who paid."
                ),
            ),
            State::Contested => (
                "You contested a takedown",
                format!(
                    "You contested that your dataset {dataset} is blocked ({ground}). It stays blocked until an operator has decided; if none has by\n\
                     {due_at}, it is back."
                ),
            ),
            State::Upheld => (
                "Your dataset stays blocked",
                format!(
                    "Your dataset {dataset} is blocked for good ({ground}), and what was held back went to who paid."
                ),
            ),
            State::Rejected => (
                "Your dataset is back",
                format!(
                    "Your dataset {dataset} is not blocked by takedown {id} any more, and what was held back for it is yours."
                ),
            ),
            State::Dismissed => (
                "Your dataset stays where it is",
                format!(
                    "An operator saw no reason to block your dataset {dataset} ({ground}). Nothing has changed."
                ),
            ),
            State::Withdrawn => (
                "Your dataset stays where it is",
                format!(
                    "Whoever said that your dataset {dataset} must not be here ({ground}) took that back. Nothing has changed."
                ),
            ),
        }
    }

    fn to_claimant(&self, due_at: &str) -> (&'static str, String) {
        let Self {
            dataset,
            ground,
            state,
            ..
        } = self;
        match state {
            State::Filed => (
                "Your takedown was filed",
                format!(
                    "You said that the dataset {dataset} must not be here ({ground}). An operator will look at it, and you are told what becomes of it."
                ),
            ),
            State::Frozen => (
                "The dataset was taken down",
                format!(
                    "The dataset {dataset} is blocked ({ground}): nobody reads, buys or computes on it. Its seller may contest that until {due_at};\n\
                     after that it stays blocked for good."
                ),
            ),
            State::Contested => (
                "Your takedown is contested",
                format!(
                    "The seller of the dataset {dataset} contests your takedown ({ground}); read what it says. The dataset stays blocked until an\n\
                     operator has decided; if none has by {due_at}, it is back. Tell the operator by then if you went to court."
                ),
            ),
            State::Upheld => (
                "The dataset stays blocked",
                format!("The dataset {dataset} is blocked for good ({ground})."),
            ),
            State::Rejected => (
                "Your takedown was rejected",
                format!(
                    "The dataset {dataset} is not blocked by your takedown ({ground}) any more."
                ),
            ),
            State::Dismissed => (
                "Your takedown was dismissed",
                format!(
                    "An operator saw no reason to block the dataset {dataset} ({ground}). Nothing has changed."
                ),
            ),
            State::Withdrawn => (
                "You took a takedown back",
                format!(
                    "You do not say any more that the dataset {dataset} must not be here ({ground}). Nothing has changed."
                ),
            ),
        }
    }
}
