//! The batch: the one dimension an export leaves open.

use std::collections::BTreeMap;

use super::{
    InvalidProgram,
    graph::{
        Argument, Graph, GraphSignature, InputSpec, OutputSpec, RangeConstraint, SymInt, TensorMeta,
    },
    symbolic::{Expr, ExprError, Polynomial},
};

/// The symbol of the batch and the sizes for which the export holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Such as `s77`.
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
        let mut symbol = None;
        for name in inputs {
            let meta = &graph.tensor_values[name];
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
            if !meta.sizes[1..]
                .iter()
                .all(|size| matches!(size, SymInt::Int(0..)))
            {
                return Err(InvalidProgram::NotBatched(format!(
                    "input `{name}` has a second dynamic dimension"
                )));
            }
        }
        let symbol = symbol
            .ok_or_else(|| InvalidProgram::NotBatched("it has no input".to_owned()))?
            .clone();
        check_outputs(graph, signature, &symbol)?;
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
        let batch = Self { symbol, min, max };
        for (name, meta) in &graph.tensor_values {
            // Sizes that depend on anything but the batch could be neither priced nor compared.
            if !batch
                .sizes(meta, min)
                .is_ok_and(|sizes| sizes.iter().all(|size| *size >= 0))
            {
                return Err(InvalidProgram::Undescribed(name.clone()));
            }
        }
        Ok(batch)
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
    symbol: &str,
) -> Result<(), InvalidProgram> {
    for spec in &signature.output_specs {
        let OutputSpec::UserOutput {
            arg: Argument::Tensor(tensor),
        } = spec
        else {
            continue;
        };
        let meta = &graph.tensor_values[&tensor.name];
        let is_batch = |size: &SymInt| matches!(size, SymInt::Expr(it) if it.expr == Expr::Symbol(symbol.to_owned()));
        let (first, rest) = meta
            .sizes
            .split_first()
            .map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
        if !first.is_some_and(is_batch) || !rest.iter().all(|size| matches!(size, SymInt::Int(0..)))
        {
            let name = &tensor.name;
            return Err(InvalidProgram::NotBatched(format!(
                "output `{name}` does not have one row for each row of input"
            )));
        }
    }
    Ok(())
}
