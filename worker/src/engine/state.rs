//! The tensors a program keeps: parameters, buffers and constants.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::BufReader,
};

use comptoir_domain::{
    digest::Sha256,
    program::{Archive, ArchiveError, Program, Role, StoredTensor, graph::ScalarType},
    tensors::are_booleans,
};
use tch::{Device, Tensor};

use super::{
    failure::{Code, Failure},
    files::{self, TensorFile},
};
use crate::aten::{AtenError, Input, Operator};

/// An opened `.pt2` file.
pub type ProgramFile = Archive<BufReader<File>>;

/// The tensors of one run, by every name they have. Names of one tensor (tied weights) share it.
pub struct State {
    tensors: BTreeMap<String, Tensor>,
    /// For each name the first name, in byte order, of the same tensor.
    first_names: BTreeMap<String, String>,
    /// First names of what a result holds.
    saved: BTreeSet<String>,
    /// First names of what training moves.
    trainable: BTreeSet<String>,
}

impl State {
    /// Loads an archive's own tensors.
    pub fn load(archive: &mut ProgramFile, device: Device) -> Result<Self, Failure> {
        let program = archive.program().clone();
        let first_names = first_names(&program);
        let mut by_payload: BTreeMap<&str, Vec<(&String, &StoredTensor)>> = BTreeMap::new();
        for (name, stored) in &program.tensors {
            if first_names[name] == *name {
                by_payload
                    .entry(&stored.payload)
                    .or_default()
                    .push((name, stored));
            }
        }
        let clone =
            Operator::find("aten::clone", "").map_err(|error| failed("load tensors", &error))?;
        let mut firsts = BTreeMap::new();
        for (payload, views) in by_payload {
            let bytes = archive.payload(payload).map_err(unreadable)?;
            for (name, stored) in views {
                if stored.dtype == ScalarType::Bool && !are_booleans(&bytes) {
                    let reason =
                        format!("stored tensor `{name}` has a boolean that is neither 0 nor 1");
                    return Err(Failure::new(Code::InvalidProgram, reason));
                }
                let tensor =
                    view(stored, &bytes, &clone, device).map_err(|error| failed(name, &error))?;
                firsts.insert(name.clone(), tensor);
            }
        }
        let tensors = first_names
            .iter()
            .map(|(name, first)| (name.clone(), firsts[first].shallow_clone()))
            .collect();
        let first_of = |select: fn(&Role) -> bool| -> BTreeSet<String> {
            let chosen = program
                .tensors
                .iter()
                .filter(|(_, stored)| select(&stored.role));
            chosen.map(|(name, _)| first_names[name].clone()).collect()
        };
        let saved = first_of(|role| {
            matches!(
                role,
                Role::Parameter { .. } | Role::Buffer { persistent: true }
            )
        });
        let trainable = first_of(|role| {
            matches!(
                role,
                Role::Parameter {
                    requires_grad: true
                }
            )
        });
        Ok(Self {
            tensors,
            first_names,
            saved,
            trainable,
        })
    }

    /// Replaces parameters and buffers by those of a file. It must hold each of them, under any of its names, and nothing
    /// that the program does not have.
    pub fn apply(&mut self, file: &mut TensorFile) -> Result<(), Failure> {
        let _guard = tch::no_grad_guard();
        let mut given: BTreeMap<&String, Sha256> = BTreeMap::new();
        let names: Vec<String> = file.header().tensors.keys().cloned().collect();
        for name in &names {
            let wrong = |reason: &str| {
                Failure::new(
                    Code::InvalidWeights,
                    format_args!("weight `{name}` {reason}"),
                )
            };
            let (Some(target), Some(first)) = (self.tensors.get(name), self.first_names.get(name))
            else {
                return Err(wrong("is not of this program"));
            };
            let tensor = file
                .tensor(name)
                .map_err(|error| error.into_failure(Code::InvalidWeights, name))?;
            let kinds = (tensor.f_kind(), target.f_kind());
            if tensor.size() != target.size() || !matches!(kinds, (Ok(a), Ok(b)) if a == b) {
                return Err(wrong(
                    "has another shape or element type than the program's",
                ));
            }
            let bytes = files::to_bytes(&tensor).map_err(|error| failed(name, &error))?;
            let digest = Sha256::of(&bytes);
            match given.get(first) {
                Some(other) if *other != digest => {
                    return Err(wrong("is tied to another weight that differs"));
                }
                Some(_) => {}
                None => {
                    target
                        .shallow_clone()
                        .f_copy_(&tensor)
                        .map_err(|error| failed(name, &error.into()))?;
                    given.insert(first, digest);
                }
            }
        }
        match self.saved.iter().find(|first| !given.contains_key(first)) {
            Some(missing) => Err(Failure::new(
                Code::InvalidWeights,
                format_args!("weight `{missing}` is missing"),
            )),
            None => Ok(()),
        }
    }

    /// Takes the parameters and saved buffers of another program, by name, so that both compute with the same memory.
    pub fn share(&mut self, other: &Self) -> Result<(), Failure> {
        let wrong = |name: &str, reason: &str| {
            let reason = format!("weight `{name}` {reason}");
            Failure::new(Code::InvalidProgram, reason)
        };
        let mut shared = BTreeMap::new();
        let saved = |(_, first): &(&String, &String)| self.saved.contains(*first);
        for (name, first) in self.first_names.iter().filter(saved) {
            let Some(theirs) = other.tensors.get(name) else {
                continue;
            };
            let (ours, kind) = (&self.tensors[name], theirs.f_kind());
            if ours.size() != theirs.size()
                || !matches!((ours.f_kind(), kind), (Ok(a), Ok(b)) if a == b)
            {
                return Err(wrong(name, "has another shape or element type there"));
            }
            shared.insert(first, theirs);
        }
        for (name, first) in self.first_names.iter().filter(saved) {
            let theirs = shared.get(first);
            let theirs = theirs.ok_or_else(|| wrong(name, "is not of the program that answers"))?;
            self.tensors.insert(name.clone(), theirs.shallow_clone());
        }
        Ok(())
    }

    /// A tensor by any of its names.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, Failure> {
        let unknown = || {
            Failure::new(
                Code::InvalidProgram,
                format_args!("no stored tensor `{name}`"),
            )
        };
        self.tensors.get(name).ok_or_else(unknown)
    }

    /// Every tensor once, by its first name in order: what a checkpoint holds.
    pub fn firsts(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.tensors
            .iter()
            .filter(|(name, _)| self.first_names[*name] == **name)
    }

    /// Every name of a tensor, by the first.
    #[must_use]
    pub fn names_of(&self, first: &str) -> Vec<&String> {
        let names = self.first_names.iter();
        let names = names.filter(|(_, it)| *it == first);
        names.map(|(name, _)| name).collect()
    }

    /// What a result holds.
    #[must_use]
    pub fn saved(&self) -> Vec<(String, Tensor)> {
        let chosen = self.firsts().filter(|(name, _)| self.saved.contains(*name));
        chosen
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect()
    }

    /// Makes parameters collect gradients, and returns them in the order of their first names.
    pub fn track_gradients(&self) -> Result<Vec<Tensor>, AtenError> {
        let chosen = self
            .firsts()
            .filter(|(name, _)| self.trainable.contains(*name));
        chosen
            .map(|(_, tensor)| Ok(tensor.f_set_requires_grad(true)?))
            .collect()
    }
}

fn failed(what: &str, error: &AtenError) -> Failure {
    Failure::from_aten(Code::Machine, what, error)
}

/// An archive that does not read is its owner's matter, a disk that does not is ours.
#[must_use]
pub fn unreadable(error: ArchiveError) -> Failure {
    match error {
        ArchiveError::Io(error) => {
            Failure::new(Code::Machine, format_args!("read the program: {error}"))
        }
        other => Failure::new(Code::InvalidProgram, other),
    }
}

/// Which names are the same tensor, without comparing each with each.
fn first_names(program: &Program) -> BTreeMap<String, String> {
    let mut firsts = BTreeMap::new();
    let first_of = |(name, stored): (&String, &StoredTensor)| {
        let memory = (
            stored.payload.clone(),
            stored.dtype,
            stored.storage_offset,
            stored.sizes.clone(),
            stored.strides.clone(),
        );
        let first: &mut String = firsts.entry(memory).or_insert_with(|| name.clone());
        (name.clone(), first.clone())
    };
    program.tensors.iter().map(first_of).collect()
}

/// One stored tensor in memory of its own, with the strides it was stored with.
fn view(
    stored: &StoredTensor,
    payload: &[u8],
    clone: &Operator,
    device: Device,
) -> Result<Tensor, AtenError> {
    let size = usize::try_from(stored.dtype.size()).expect("an element has a few bytes");
    let elements = payload.len() / size;
    let flat = files::from_bytes(
        stored.dtype,
        &[elements as u64],
        &payload[..elements * size],
    )?;
    let numbers = |numbers: &[u64]| -> Vec<i64> {
        numbers
            .iter()
            .map(|number| i64::try_from(*number).expect("it lies within the payload"))
            .collect()
    };
    let offset = i64::try_from(stored.storage_offset).expect("it lies within the payload");
    let strided = flat.f_as_strided(numbers(&stored.sizes), numbers(&stored.strides), offset)?;
    let is_whole = stored.is_contiguous() && stored.elements() == Some(elements as u64);
    let owned = if is_whole {
        strided
    } else {
        clone.tensor([("self", Input::Tensor(&strided))])?
    };
    Ok(owned.f_to_device(device)?)
}
