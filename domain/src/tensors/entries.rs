//! Entries of a header, read one by one: whoever writes a header decides how long it is, and not how much memory it takes.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};

use super::{Entry, InvalidTensors, TENSORS_MAX};
use crate::program::DIMENSIONS_MAX;

/// The entries of a header, by name.
pub(super) fn read(json: &[u8]) -> Result<BTreeMap<String, Entry>, InvalidTensors> {
    let Entries(entries) = serde_json::from_slice(json)?;
    // One more was read than there may be, and nothing behind it.
    if entries.len() > TENSORS_MAX {
        return Err(InvalidTensors::TooManyTensors);
    }
    Ok(entries)
}

struct Entries(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object without repeated names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Entries, A::Error> {
                let (mut entries, mut noted) = (BTreeMap::new(), false);
                while let Some(name) = access.next_key::<String>()? {
                    let twice = if name == "__metadata__" {
                        // Free text of whoever wrote the file: checked to be that, and not kept.
                        let Notes = access.next_value()?;
                        std::mem::replace(&mut noted, true)
                    } else if entries.len() > TENSORS_MAX {
                        access.next_value::<de::IgnoredAny>()?;
                        false
                    } else {
                        let entry = access.next_value()?;
                        entries.insert(name.clone(), entry).is_some()
                    };
                    if twice {
                        let error = format_args!("the name {name:?} stands twice");
                        return Err(de::Error::custom(error));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// An object of texts.
struct Notes;

impl<'de> Deserialize<'de> for Notes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NotesVisitor;
        impl<'de> Visitor<'de> for NotesVisitor {
            type Value = Notes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Notes, A::Error> {
                while access.next_entry::<String, String>()?.is_some() {}
                Ok(Notes)
            }
        }
        deserializer.deserialize_map(NotesVisitor)
    }
}

/// Dimensions, and none behind the one that a tensor may not have: that it is there is enough to refuse it.
pub(super) fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct ShapeVisitor;
    impl<'de> Visitor<'de> for ShapeVisitor {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vec<u64>, A::Error> {
            let mut shape = Vec::new();
            while let Some(size) = access.next_element()? {
                if shape.len() <= DIMENSIONS_MAX {
                    shape.push(size);
                }
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(ShapeVisitor)
}
