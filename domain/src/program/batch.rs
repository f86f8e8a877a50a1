//! The batch: the one dimension an export leaves open, or a fixed one of a single row.

use std::collections::BTreeMap;

use super::{
    InvalidProgram,
    graph::{
        Argument, Graph, GraphSignature, InputSpec, OutputSpec, RangeConstraint, SymInt, TensorMeta,
    },
    symbolic::{Expr, ExprError, Polynomial},
};

/// The first size of what goes in and comes out of a program that takes a single row.
const ONE_ROW: SymInt = SymInt::Int(1);

/// The symbol of the batch and the sizes for which the export holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Such as `s77`; empty where the export holds for a single row.
    pub symbol: String,
    /// At least 1.
    pub min: u64,
    pub max: u64,
}

/// A job would run a batch for which the export does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{rows} rows in batches of {batch_size} make a batch of {found}; the program holds for {min} to {max}"
)]
pub struct BatchOutOfRange {
    pub rows: u64,
    pub batch_size: u64,
    pub found: u64,
    pub min: u64,
    pub max: u64,
}

impl Batch {
    pub(super) fn of(
        graph: &Graph,
        signature: &GraphSignature,
        ranges: &BTreeMap<String, RangeConstraint>,
    ) -> Result<Self, InvalidProgram> {
        let inputs = signature.input_specs.iter().filter_map(|spec| match spec {
            InputSpec::UserInput {
                arg: Argument::Tensor(tensor),
            } => Some(&tensor.name),
            _ => None,
        });
        let inputs: Vec<&String> = inputs.collect();
        let is_one = |name: &&String| graph.tensor_values[*name].sizes.first() == Some(&ONE_ROW);
        let batch = if !inputs.is_empty() && inputs.iter().all(is_one) {
            Self::one_row(graph, signature, &inputs)?
        } else {
            Self::open(graph, signature, ranges, &inputs)?
        };
        for (name, meta) in &graph.tensor_values {
            // Sizes that depend on anything but the batch could be neither priced nor compared.
            if !batch
                .sizes(meta, batch.min)
                .is_ok_and(|sizes| sizes.iter().all(|size| *size >= 0))
            {
                return Err(InvalidProgram::Undescribed(name.clone()));
            }
        }
        Ok(batch)
    }

    /// Every first dimension is 1, as in exports that keep something from one step to the next.
    fn one_row(
        graph: &Graph,
        signature: &GraphSignature,
        inputs: &[&String],
    ) -> Result<Self, InvalidProgram> {
        for name in inputs {
            if !are_fixed(&graph.tensor_values[*name].sizes[1..]) {
                return Err(InvalidProgram::NotBatched(format!(
                    "input `{name}` has a dynamic dimension that is not the first"
                )));
            }
        }
        check_outputs(graph, signature, |first| *first == ONE_ROW)?;
        Ok(Self {
            symbol: String::new(),
            min: 1,
            max: 1,
        })
    }

    /// The first dimension of every input is the same symbol.
    fn open(
        graph: &Graph,
        signature: &GraphSignature,
        ranges: &BTreeMap<String, RangeConstraint>,
        inputs: &[&String],
    ) -> Result<Self, InvalidProgram> {
        let mut symbol = None;
        for name in inputs {
            let meta = &graph.tensor_values[*name];
            let Some(SymInt::Expr(first)) = meta.sizes.first() else {
                return Err(InvalidProgram::NotBatched(format!(
                    "input `{name}` has a fixed first dimension"
                )));
            };
            let Expr::Symbol(found) = &first.expr else {
                return Err(InvalidProgram::NotBatched(format!(
                    "the batch of input `{name}` is derived"
                )));
            };
            if symbol.get_or_insert(found) != &found {
                return Err(InvalidProgram::NotBatched(
                    "the inputs have different batches".to_owned(),
                ));
            }
            if !are_fixed(&meta.sizes[1..]) {
                return Err(InvalidProgram::NotBatched(format!(
                    "input `{name}` has a second dynamic dimension"
                )));
            }
        }
        let symbol = symbol
            .ok_or_else(|| InvalidProgram::NotBatched("it has no input".to_owned()))?
            .clone();
        let is_batch = |first: &SymInt| matches!(first, SymInt::Expr(it) if it.expr == Expr::Symbol(symbol.clone()));
        check_outputs(graph, signature, is_batch)?;
        let range = ranges.get(&symbol);
        let bound = |bound: Option<i64>, absent: u64| {
            bound.map_or(absent, |bound| u64::try_from(bound).unwrap_or(0))
        };
        let min = bound(range.and_then(|range| range.min_val), 1).max(1);
        let max = bound(range.and_then(|range| range.max_val), u64::MAX);
        if min > max {
            return Err(InvalidProgram::NotBatched(format!(
                "no batch is in {min} to {max}"
            )));
        }
        Ok(Self { symbol, min, max })
    }

    /// Whether a job of these rows can run in batches of this size: every batch, the last one too, must be in range.
    pub fn allows(&self, rows: u64, batch_size: u64) -> Result<(), BatchOutOfRange> {
        let refused = |found| BatchOutOfRange {
            rows,
            batch_size,
            found,
            min: self.min,
            max: self.max,
        };
        let batches = rows.checked_div(batch_size).ok_or_else(|| refused(0))?;
        let (full, last) = ((batches > 0).then_some(batch_size), rows % batch_size);
        for found in full.into_iter().chain((last > 0).then_some(last)) {
            if found < self.min || found > self.max {
                return Err(refused(found));
            }
        }
        Ok(())
    }

    /// The recorded sizes of a tensor for a batch; a run compares what operators really made with them.
    pub fn sizes(&self, meta: &TensorMeta, batch: u64) -> Result<Vec<i64>, ExprError> {
        let batch = i64::try_from(batch).map_err(|_| ExprError::Overflow)?;
        let bindings = BTreeMap::from([(self.symbol.clone(), batch)]);
        let value = |size: &SymInt| match size {
            SymInt::Int(int) => Ok(*int),
            SymInt::Expr(symbolic) => symbolic.expr.evaluate(&bindings),
        };
        meta.sizes.iter().map(value).collect()
    }

    /// One recorded size as a polynomial of the batch.
    pub fn polynomial(&self, size: &SymInt) -> Result<Polynomial, ExprError> {
        match size {
            SymInt::Int(int) => Ok(Polynomial::constant(i128::from(*int))),
            SymInt::Expr(symbolic) => symbolic.expr.polynomial(&self.symbol),
        }
    }
}

/// Rows out are rows in: otherwise the outputs of batches could not be put together.
fn check_outputs(
    graph: &Graph,
    signature: &GraphSignature,
    is_batch: impl Fn(&SymInt) -> bool,
) -> Result<(), InvalidProgram> {
    for spec in &signature.output_specs {
        let OutputSpec::UserOutput {
            arg: Argument::Tensor(tensor),
        } = spec
        else {
            continue;
        };
        let meta = &graph.tensor_values[&tensor.name];
        let sizes = meta.sizes.split_first();
        if !sizes.is_some_and(|(first, rest)| is_batch(first) && are_fixed(rest)) {
            let name = &tensor.name;
            return Err(InvalidProgram::NotBatched(format!(
                "output `{name}` does not have one row for each row of input"
            )));
        }
    }
    Ok(())
}

fn are_fixed(sizes: &[SymInt]) -> bool {
    sizes.iter().all(|size| matches!(size, SymInt::Int(0..)))
}
