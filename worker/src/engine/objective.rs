//! What training minimises.

use comptoir_domain::job::Loss;
use tch::{Device, Kind, Reduction, Tensor};

use super::failure::{Code, Failure};
use crate::aten::AtenError;

/// The class index that `PyTorch` would leave out of the mean. Targets are checked, so it never occurs.
const IGNORED_CLASS: i64 = -100;

/// A loss over a target.
pub struct Objective {
    loss: Loss,
    target: Tensor,
    /// Lowest and highest class of the whole target.
    classes: Option<(i64, i64)>,
}

/// One batch, measured.
pub struct Measured {
    /// The mean, with its graph.
    pub loss: Tensor,
    pub value: f64,
    /// Classes that were the likeliest, of so many.
    pub correct: Option<(i64, i64)>,
}

impl Objective {
    /// Checks the whole target: one element for each row, and class indices for cross-entropy.
    pub fn new(loss: Loss, target: Tensor, rows: usize) -> Result<Self, Failure> {
        let size = target.size();
        if size.first().copied() != i64::try_from(rows).ok() {
            let reason = format!("the target has the shape {size:?} for {rows} rows");
            return Err(Failure::new(Code::InvalidInput, reason));
        }
        let kind = target.f_kind().map_err(|error| failed(&error.into()))?;
        let classes = match loss {
            Loss::Mse => None,
            Loss::CrossEntropy if kind == Kind::Int64 && target.numel() > 0 => {
                let range = range(&target).map_err(|error| failed(&error))?;
                Some(range)
            }
            Loss::CrossEntropy => {
                return Err(Failure::new(
                    Code::InvalidInput,
                    "the target of cross-entropy must be int64 class indices",
                ));
            }
        };
        Ok(Self {
            loss,
            target,
            classes,
        })
    }

    /// Measures an output against the target of the same rows.
    pub fn measure(
        &self,
        output: &Tensor,
        rows: &Tensor,
        device: Device,
    ) -> Result<Measured, Failure> {
        let target =
            super::rows::select(&self.target, rows, device).map_err(|error| failed(&error))?;
        let kind = output.f_kind().map_err(|error| failed(&error.into()))?;
        if !matches!(
            kind,
            Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16
        ) {
            return Err(Failure::new(
                Code::InvalidInput,
                format_args!("the loss reads an output of {kind:?}"),
            ));
        }
        let (loss, correct) = match self.loss {
            Loss::CrossEntropy => self.cross_entropy(output, &target)?,
            Loss::Mse => {
                if output.size() != target.size() || target.f_kind().ok() != Some(kind) {
                    let reason = format!(
                        "the target is {:?} {:?} where the output is {kind:?} {:?}",
                        target.f_kind(),
                        target.size(),
                        output.size()
                    );
                    return Err(Failure::new(Code::InvalidInput, reason));
                }
                (
                    output
                        .f_mse_loss(&target, Reduction::Mean)
                        .map_err(|error| failed(&error.into()))?,
                    None,
                )
            }
        };
        let value = loss
            .f_double_value(&[])
            .map_err(|error| failed(&error.into()))?;
        Ok(Measured {
            loss,
            value,
            correct,
        })
    }

    fn cross_entropy(
        &self,
        output: &Tensor,
        target: &Tensor,
    ) -> Result<(Tensor, Option<(i64, i64)>), Failure> {
        let size = output.size();
        let Some((classes, before)) = size
            .split_last()
            .filter(|(_, before)| **before == *target.size())
        else {
            let reason = format!(
                "the target has the shape {:?} for an output of {size:?}",
                target.size()
            );
            return Err(Failure::new(Code::InvalidInput, reason));
        };
        if let Some((lowest, highest)) = self.classes
            && (lowest < 0 || highest >= *classes)
        {
            let reason = format!(
                "the target has classes {lowest} to {highest}; the output knows 0 to {}",
                classes - 1
            );
            return Err(Failure::new(Code::InvalidInput, reason));
        }
        let measured: i64 = before.iter().product();
        let compute = || -> Result<_, AtenError> {
            let logits = output.f_reshape([-1, *classes])?;
            let flat = target.f_reshape([-1])?;
            let loss = logits.f_cross_entropy_loss::<Tensor>(
                &flat,
                None,
                Reduction::Mean,
                IGNORED_CLASS,
                0.0,
            )?;
            let _guard = tch::no_grad_guard();
            let hits = logits
                .f_argmax(-1, false)?
                .f_eq_tensor(&flat)?
                .f_sum(Kind::Int64)?;
            Ok((loss, hits.f_int64_value(&[])?))
        };
        let (loss, hits) = compute().map_err(|error| failed(&error))?;
        Ok((loss, Some((hits, measured))))
    }
}

fn range(target: &Tensor) -> Result<(i64, i64), AtenError> {
    Ok((
        target.f_min()?.f_int64_value(&[])?,
        target.f_max()?.f_int64_value(&[])?,
    ))
}

fn failed(error: &AtenError) -> Failure {
    Failure::from_aten(Code::OperatorFailed, "compute the loss", error)
}
