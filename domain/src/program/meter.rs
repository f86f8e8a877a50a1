//! The meter: how many multiply-adds a program does for one row, exactly, from its recorded shapes.
//!
//! Each operator's rule (`operators.rs`) gives a polynomial of the batch; the sum over the graph is the program's work. One
//! row costs that polynomial at batch 1: work that grows with the batch counts once per row, and so does work that does not
//! depend on it. A program whose rows multiply each other (a power of the batch above 1) has no price per row and is
//! refused, as is one with an operator that has no rule. The example batch of the export plays no part.
//!
//! The rules count what PyTorch's own `torch.utils.flop_counter` counts (2 operations for each multiply-add):
//!
//! | operator | multiply-adds |
//! |---|---|
//! | `linear` | elements of the output × input features |
//! | `mm bmm matmul addmm baddbmm mv dot addmv` | elements of the output × inner dimension |
//! | `conv1d conv2d conv3d convolution` | elements of the output × input channels ÷ groups × elements of the kernel |
//! | `conv_transpose*d` | elements of the input × output channels ÷ groups × elements of the kernel |
//! | `scaled_dot_product_attention` | queries × keys × (key features + value features), per head; masks change nothing |
//! | `einsum` of two tensors | the product of the sizes of all letters |
//! | everything else on the list | 0 |
//!
//! A recorded shape may lie; the stored tensors may not (they are compared), and a run compares every value an operator
//! makes with its record and fails at the first difference. So a program that runs is a program that was priced.

use super::{
    Program,
    graph::{Argument, Node, TensorMeta},
    operators::{Rule, rule},
    symbolic::{ExprError, Polynomial},
};

/// Most multiply-adds of one row: what a signed 64-bit column holds.
pub const PER_ROW_MAX: u64 = i64::MAX.unsigned_abs();

/// Why a program has no price per row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    #[error("operator `{0}` is not on the list of operators that may run")]
    UnknownOperator(String),
    #[error("the work of `{target}` cannot be computed from its recorded shapes: {reason}")]
    Uncountable { target: String, reason: Uncountable },
    #[error("the work grows with the power {0} of the batch, so a row has no price")]
    NotPerRow(usize),
    #[error("the work is larger than can be priced")]
    TooLarge,
}

/// What stops one operator from being counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Uncountable {
    #[error("it has no argument `{0}` of a described tensor")]
    Argument(&'static str),
    #[error("a tensor has too few dimensions")]
    Dimensions,
    #[error("it is not an einsum of two tensors over plain letters")]
    Equation,
    #[error(transparent)]
    Size(#[from] ExprError),
}

/// The multiply-adds of one row.
pub fn multiply_adds_per_row(program: &Program) -> Result<u64, MeterError> {
    let work = work(program)?;
    if work.degree() > 1 {
        return Err(MeterError::NotPerRow(work.degree()));
    }
    let at_one = work.evaluate(1).map_err(|_| MeterError::TooLarge)?;
    u64::try_from(at_one)
        .ok()
        .filter(|row| *row <= PER_ROW_MAX)
        .ok_or(MeterError::TooLarge)
}

/// The multiply-adds of a whole program as a polynomial of the batch.
pub fn work(program: &Program) -> Result<Polynomial, MeterError> {
    program
        .graph
        .nodes
        .iter()
        .try_fold(Polynomial::default(), |sum, node| {
            let rule = rule(&node.target)
                .ok_or_else(|| MeterError::UnknownOperator(node.target.clone()))?;
            let uncountable = |reason| MeterError::Uncountable {
                target: node.target.clone(),
                reason,
            };
            let work = Call { program, node }.work(rule).map_err(uncountable)?;
            sum.add(&work).map_err(|_| MeterError::TooLarge)
        })
}

/// One operator call in its program.
struct Call<'a> {
    program: &'a Program,
    node: &'a Node,
}

impl Call<'_> {
    fn work(&self, rule: Rule) -> Result<Polynomial, Uncountable> {
        match rule {
            Rule::Free => Ok(Polynomial::default()),
            Rule::Linear => self.times(self.output()?, &self.size(self.input("weight")?, 1)?),
            Rule::Matmul(left) => {
                let left = self.input(left)?;
                let inner = left
                    .sizes
                    .len()
                    .checked_sub(1)
                    .ok_or(Uncountable::Dimensions)?;
                self.times(self.output()?, &self.size(left, inner)?)
            }
            Rule::Convolution if self.node.input("transposed") == Some(&Argument::Bool(true)) => {
                self.transposed()
            }
            Rule::Convolution => self.times(self.output()?, &self.filter()?),
            Rule::TransposedConvolution => self.transposed(),
            Rule::Attention => {
                let key = self.input("key")?;
                let keys = key
                    .sizes
                    .len()
                    .checked_sub(2)
                    .ok_or(Uncountable::Dimensions)?;
                let pairs = self
                    .elements(self.input("query")?)?
                    .add(&self.elements(self.output()?)?)?;
                Ok(pairs.mul(&self.size(key, keys)?)?)
            }
            Rule::Einsum => self.einsum(),
        }
    }

    fn transposed(&self) -> Result<Polynomial, Uncountable> {
        self.times(self.input("input")?, &self.filter()?)
    }

    /// Elements of one filter: every dimension of the weight but the first, in both kinds of convolution.
    fn filter(&self) -> Result<Polynomial, Uncountable> {
        let weight = self.input("weight")?;
        (1..weight.sizes.len()).try_fold(Polynomial::constant(1), |product, dim| {
            Ok(product.mul(&self.size(weight, dim)?)?)
        })
    }

    fn einsum(&self) -> Result<Polynomial, Uncountable> {
        let (Some(Argument::String(equation)), Some(Argument::Tensors(tensors))) =
            (self.node.input("equation"), self.node.input("tensors"))
        else {
            return Err(Uncountable::Equation);
        };
        let equation = equation.replace(' ', "");
        let operands: Vec<&str> = equation
            .split("->")
            .next()
            .unwrap_or_default()
            .split(',')
            .collect();
        if operands.len() != 2 || tensors.len() != 2 {
            return Err(Uncountable::Equation);
        }
        let mut sizes = std::collections::BTreeMap::new();
        for (letters, tensor) in operands.into_iter().zip(tensors) {
            let meta = self.meta(&tensor.name, "tensors")?;
            if letters.len() != meta.sizes.len()
                || !letters.bytes().all(|byte| byte.is_ascii_alphabetic())
            {
                return Err(Uncountable::Equation);
            }
            for (dim, letter) in letters.chars().enumerate() {
                let size = self.size(meta, dim)?;
                // A dimension of 1 is broadcast against the other operand's.
                let known = sizes.entry(letter).or_insert_with(|| size.clone());
                if *known == Polynomial::constant(1) {
                    *known = size;
                }
            }
        }
        sizes
            .values()
            .try_fold(Polynomial::constant(1), |product, size| {
                Ok(product.mul(size)?)
            })
    }

    fn times(&self, tensor: &TensorMeta, factor: &Polynomial) -> Result<Polynomial, Uncountable> {
        Ok(self.elements(tensor)?.mul(factor)?)
    }

    fn elements(&self, tensor: &TensorMeta) -> Result<Polynomial, Uncountable> {
        (0..tensor.sizes.len()).try_fold(Polynomial::constant(1), |product, dim| {
            Ok(product.mul(&self.size(tensor, dim)?)?)
        })
    }

    fn size(&self, tensor: &TensorMeta, dim: usize) -> Result<Polynomial, Uncountable> {
        let size = tensor.sizes.get(dim).ok_or(Uncountable::Dimensions)?;
        Ok(self.program.batch.polynomial(size)?)
    }

    fn output(&self) -> Result<&TensorMeta, Uncountable> {
        match self.node.outputs.first() {
            Some(Argument::Tensor(tensor)) => self.meta(&tensor.name, "output"),
            _ => Err(Uncountable::Argument("output")),
        }
    }

    fn input(&self, name: &'static str) -> Result<&TensorMeta, Uncountable> {
        match self.node.input(name) {
            Some(Argument::Tensor(tensor)) => self.meta(&tensor.name, name),
            _ => Err(Uncountable::Argument(name)),
        }
    }

    fn meta(&self, name: &str, argument: &'static str) -> Result<&TensorMeta, Uncountable> {
        self.program
            .graph
            .tensor_values
            .get(name)
            .ok_or(Uncountable::Argument(argument))
    }
}
