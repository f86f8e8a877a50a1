//! Texts that end a generation. Which stop ends it does not depend on how the text comes in pieces: it is the one that is complete
//! first, and of those the longest. Text that may become a stop is held back; the stop itself is never shown.

/// Stops of a call.
pub const STOPS_MAX: usize = 16;
/// Bytes of a stop: as much text may be held back.
pub const STOP_BYTES_MAX: usize = 256;

/// Why stops are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStops {
    /// There are too many.
    #[error("there are {0} stops, and may be {STOPS_MAX}")]
    TooMany(usize),
    /// One is empty or too long.
    #[error("a stop has {0} bytes, and may have 1 to {STOP_BYTES_MAX}")]
    Length(usize),
}

/// Texts that end a generation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stops(Vec<String>);

impl Stops {
    /// Takes stops.
    ///
    /// # Errors
    /// For too many, empty ones and long ones.
    pub fn new(stops: Vec<String>) -> Result<Self, InvalidStops> {
        if stops.len() > STOPS_MAX {
            return Err(InvalidStops::TooMany(stops.len()));
        }
        match stops
            .iter()
            .map(String::len)
            .find(|it| *it == 0 || *it > STOP_BYTES_MAX)
        {
            Some(bytes) => Err(InvalidStops::Length(bytes)),
            None => Ok(Self(stops)),
        }
    }

    /// Where the first stop that is complete begins.
    fn find(&self, text: &str) -> Option<usize> {
        let found = |stop: &String| {
            text.find(stop.as_str())
                .map(|start| (start + stop.len(), start))
        };
        self.0
            .iter()
            .filter_map(found)
            .min()
            .map(|(_, start)| start)
    }

    /// How much of the end of a text may be the beginning of a stop, in bytes.
    fn begun(&self, text: &str) -> usize {
        let longest = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at).rev();
            lengths
                .into_iter()
                .find(|length| text.ends_with(&stop[..*length]))
                .unwrap_or(0)
        };
        self.0.iter().map(longest).max().unwrap_or(0)
    }
}

/// Looks for stops in a text as it comes.
#[derive(Debug, Clone)]
pub struct StopFilter {
    stops: Stops,
    held: String,
}

/// What is certain of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// What may be shown.
    pub text: String,
    /// Is the generation over?
    pub is_stopped: bool,
}

impl StopFilter {
    /// Looks for these.
    #[must_use]
    pub const fn new(stops: Stops) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes a piece, and gives what is certain. Nothing comes behind a stop.
    pub fn push(&mut self, piece: &str) -> Scanned {
        self.held.push_str(piece);
        if let Some(start) = self.stops.find(&self.held) {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return Scanned {
                text,
                is_stopped: true,
            };
        }
        let rest = self
            .held
            .split_off(self.held.len() - self.stops.begun(&self.held));
        let text = std::mem::replace(&mut self.held, rest);
        Scanned {
            text,
            is_stopped: false,
        }
    }

    /// Gives what was held back, because no text comes any more.
    #[must_use]
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(stops: &[&str]) -> StopFilter {
        let stops = stops.iter().map(|it| (*it).to_owned()).collect();
        StopFilter::new(Stops::new(stops).unwrap())
    }

    /// What is shown of pieces, and whether they are stopped.
    fn shown<'a>(stops: &[&str], pieces: impl IntoIterator<Item = &'a str>) -> (String, bool) {
        let (mut filter, mut text) = (filter(stops), String::new());
        for piece in pieces {
            let scanned = filter.push(piece);
            text.push_str(&scanned.text);
            if scanned.is_stopped {
                return (text, true);
            }
        }
        (text + &filter.finish(), false)
    }

    #[test]
    fn a_stop_is_found_across_pieces_and_not_shown() {
        assert_eq!(
            shown(&["\nUser:"], ["Hello\nUs", "er: no"]),
            ("Hello".to_owned(), true)
        );
        assert_eq!(
            shown(&["\nUser:"], ["Hello\nUs", "ing"]),
            ("Hello\nUsing".to_owned(), false)
        );
        assert_eq!(shown(&["ab"], ["xa"]), ("xa".to_owned(), false));
    }

    #[test]
    fn what_may_begin_a_stop_is_held_back() {
        let mut filter = filter(&["END"]);
        assert_eq!(filter.push("xE").text, "x");
        assert_eq!(filter.push("N").text, "");
        assert_eq!(filter.push("E").text, "EN");
        assert_eq!(filter.finish(), "E");
    }

    #[test]
    fn the_stop_that_is_complete_first_ends_it_and_of_those_the_longest() {
        assert_eq!(shown(&["abc", "b"], ["abc"]), ("a".to_owned(), true));
        assert_eq!(shown(&["b", "ab"], ["ab"]), (String::new(), true));
    }

    #[test]
    fn stops_are_few_short_and_not_empty() {
        assert_eq!(
            Stops::new(vec![String::new()]),
            Err(InvalidStops::Length(0))
        );
        assert_eq!(
            Stops::new(vec!["x".repeat(257)]),
            Err(InvalidStops::Length(257))
        );
        assert_eq!(
            Stops::new(vec!["x".to_owned(); 17]),
            Err(InvalidStops::TooMany(17))
        );
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,24}", stops in prop::collection::vec("[abé]{1,4}", 0..4)) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let letters: Vec<String> = text.chars().map(String::from).collect();
            let one_by_one = shown(&stops, letters.iter().map(String::as_str));
            prop_assert_eq!(shown(&stops, [text.as_str()]), one_by_one.clone());
            let (before, is_stopped) = one_by_one;
            prop_assert!(text.starts_with(&before));
            prop_assert!(is_stopped || before == text);
            prop_assert_eq!(is_stopped, stops.iter().any(|it| text.contains(it)));
        }
    }
}
