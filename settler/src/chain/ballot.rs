//! The answers of several nodes to one question, counted.

use super::ChainError;

/// What a node says, or why it says nothing.
pub(super) type Answer<T> = Result<T, ChainError>;

/// Answers to one question, by the endpoint's place.
pub(super) struct Ballot<T> {
    pub answers: Vec<Option<Answer<T>>>,
}

impl<T> Ballot<T> {
    pub(super) fn answered(&self) -> usize {
        self.said().count()
    }

    pub(super) fn said(&self) -> impl Iterator<Item = (usize, &T)> {
        let answers = self.answers.iter().enumerate();
        answers.filter_map(|(place, answer)| Some((place, answer.as_ref()?.as_ref().ok()?)))
    }

    /// The first failure, or that somebody was slow.
    pub(super) fn failure(self) -> ChainError {
        let mut answers = self.answers.into_iter().flatten();
        let first = answers.find_map(Result::err);
        first.unwrap_or(ChainError::Silent)
    }
}

impl<T: PartialEq> Ballot<T> {
    /// Who says the same, for each thing that is said.
    pub(super) fn parties(&self) -> Vec<Vec<usize>> {
        let mut parties: Vec<(&T, Vec<usize>)> = Vec::new();
        for (place, said) in self.said() {
            match parties.iter_mut().find(|(it, _)| *it == said) {
                Some((_, members)) => members.push(place),
                None => parties.push((said, vec![place])),
            }
        }
        parties.into_iter().map(|(_, members)| members).collect()
    }

    pub(super) fn majority(&self, needed: usize) -> Option<Vec<usize>> {
        self.parties().into_iter().find(|it| it.len() >= needed)
    }
}
