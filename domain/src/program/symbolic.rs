//! Symbolic sizes: the expressions an export writes for dimensions it left open, read, evaluated and expanded exactly.
//!
//! The text is sympy's `srepr`: `Mul(Integer(2), Symbol('s77', positive=True, integer=True))`. Only shapes are computed
//! from it, so integers are enough; what is not understood stays opaque and is refused where its value is needed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};

/// Longest expression text that is read.
pub const EXPRESSION_BYTES_MAX: usize = 4_096;
/// Deepest nesting that is read.
pub const EXPRESSION_DEPTH_MAX: usize = 32;
/// Highest power of the batch that is expanded; a price allows only 1.
pub const DEGREE_MAX: usize = 8;

/// A size expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    Int(i64),
    Symbol(String),
    Add(Vec<Expr>),
    Mul(Vec<Expr>),
    Pow(Box<Expr>, Box<Expr>),
    Min(Vec<Expr>),
    Max(Vec<Expr>),
    /// Division rounding down.
    FloorDiv(Box<Expr>, Box<Expr>),
    /// Remainder of `FloorDiv`.
    Mod(Box<Expr>, Box<Expr>),
    /// A function without a meaning here. It may stand where nobody needs its value, such as in a stride.
    Opaque(String),
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExprError {
    #[error(
        "expression is longer than {EXPRESSION_BYTES_MAX} bytes or nested deeper than {EXPRESSION_DEPTH_MAX}"
    )]
    TooLarge,
    #[error("expression is not readable at byte {0}")]
    Syntax(usize),
    #[error("function `{0}` in a size is not supported")]
    Unsupported(String),
    #[error("symbol `{0}` is not bound")]
    Unbound(String),
    #[error("size does not fit 64 bits")]
    Overflow,
    #[error("size is not a polynomial of the batch")]
    NotPolynomial,
}

impl Expr {
    /// Reads the export's text.
    pub fn parse(text: &str) -> Result<Self, ExprError> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(ExprError::TooLarge);
        }
        let mut parser = Parser { text, at: 0 };
        let expr = parser.expr(0)?;
        parser.spaces();
        if parser.at == text.len() {
            Ok(expr)
        } else {
            Err(ExprError::Syntax(parser.at))
        }
    }

    /// The value with every symbol bound.
    pub fn evaluate(&self, bindings: &BTreeMap<String, i64>) -> Result<i64, ExprError> {
        let value = |expr: &Self| expr.evaluate(bindings);
        let fold = |terms: &[Self], start: i64, step: fn(i64, i64) -> Option<i64>| {
            terms.iter().try_fold(start, |acc, term| {
                step(acc, value(term)?).ok_or(ExprError::Overflow)
            })
        };
        match self {
            Self::Int(int) => Ok(*int),
            Self::Symbol(name) => bindings
                .get(name)
                .copied()
                .ok_or_else(|| ExprError::Unbound(name.clone())),
            Self::Add(terms) => fold(terms, 0, i64::checked_add),
            Self::Mul(terms) => fold(terms, 1, i64::checked_mul),
            Self::Min(terms) => fold(terms, i64::MAX, |a, b| Some(a.min(b))),
            Self::Max(terms) => fold(terms, i64::MIN, |a, b| Some(a.max(b))),
            Self::Pow(base, exponent) => {
                let exponent =
                    u32::try_from(value(exponent)?).map_err(|_| ExprError::NotPolynomial)?;
                value(base)?
                    .checked_pow(exponent)
                    .ok_or(ExprError::Overflow)
            }
            Self::FloorDiv(a, b) => floor_div(value(a)?, value(b)?).map(|(quotient, _)| quotient),
            Self::Mod(a, b) => floor_div(value(a)?, value(b)?).map(|(_, remainder)| remainder),
            Self::Opaque(name) => Err(ExprError::Unsupported(name.clone())),
        }
    }

    /// The expression as a polynomial of its one symbol.
    pub fn polynomial(&self, symbol: &str) -> Result<Polynomial, ExprError> {
        match self {
            Self::Int(int) => Ok(Polynomial::constant(i128::from(*int))),
            Self::Symbol(name) if name == symbol => Ok(Polynomial::symbol()),
            Self::Symbol(name) => Err(ExprError::Unbound(name.clone())),
            Self::Add(terms) => terms.iter().try_fold(Polynomial::constant(0), |sum, term| {
                sum.add(&term.polynomial(symbol)?)
            }),
            Self::Mul(terms) => terms
                .iter()
                .try_fold(Polynomial::constant(1), |product, term| {
                    product.mul(&term.polynomial(symbol)?)
                }),
            Self::Pow(base, exponent) => {
                let Self::Int(exponent) = **exponent else {
                    return Err(ExprError::NotPolynomial);
                };
                let exponent = usize::try_from(exponent).map_err(|_| ExprError::NotPolynomial)?;
                if exponent > DEGREE_MAX {
                    return Err(ExprError::NotPolynomial);
                }
                let base = base.polynomial(symbol)?;
                (0..exponent).try_fold(Polynomial::constant(1), |product, _| product.mul(&base))
            }
            Self::Min(_) | Self::Max(_) | Self::FloorDiv(..) | Self::Mod(..) => {
                match self.evaluate(&BTreeMap::new()) {
                    Ok(int) => Ok(Polynomial::constant(i128::from(int))),
                    Err(ExprError::Unbound(_)) => Err(ExprError::NotPolynomial),
                    Err(error) => Err(error),
                }
            }
            Self::Opaque(name) => Err(ExprError::Unsupported(name.clone())),
        }
    }
}

fn floor_div(a: i64, b: i64) -> Result<(i64, i64), ExprError> {
    let remainder = a.checked_rem_euclid(b).ok_or(ExprError::Overflow)?;
    let quotient = a.checked_div_euclid(b).ok_or(ExprError::Overflow)?;
    // Euclid keeps the remainder positive, floor gives it the divisor's sign: they differ for a negative divisor.
    if b < 0 && remainder != 0 {
        return Ok((
            quotient.checked_sub(1).ok_or(ExprError::Overflow)?,
            remainder + b,
        ));
    }
    Ok((quotient, remainder))
}

/// A polynomial of the batch with exact coefficients, lowest power first, without trailing zeros.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Polynomial(Vec<i128>);

impl Polynomial {
    /// A number that does not depend on the batch.
    #[must_use]
    pub fn constant(value: i128) -> Self {
        Self(vec![value]).trimmed()
    }

    /// The batch itself.
    #[must_use]
    pub fn symbol() -> Self {
        Self(vec![0, 1])
    }

    /// The highest power that occurs; 0 for a constant.
    #[must_use]
    pub fn degree(&self) -> usize {
        self.0.len().saturating_sub(1)
    }

    /// The coefficient of a power.
    #[must_use]
    pub fn coefficient(&self, power: usize) -> i128 {
        self.0.get(power).copied().unwrap_or(0)
    }

    /// The sum.
    pub fn add(&self, other: &Self) -> Result<Self, ExprError> {
        (0..self.0.len().max(other.0.len()))
            .map(|power| {
                self.coefficient(power)
                    .checked_add(other.coefficient(power))
                    .ok_or(ExprError::Overflow)
            })
            .collect::<Result<_, _>>()
            .map(|coefficients| Self(coefficients).trimmed())
    }

    /// The product.
    pub fn mul(&self, other: &Self) -> Result<Self, ExprError> {
        if self.degree() + other.degree() > DEGREE_MAX {
            return Err(ExprError::NotPolynomial);
        }
        let mut product = vec![0_i128; self.0.len() + other.0.len()];
        for (i, a) in self.0.iter().enumerate() {
            for (j, b) in other.0.iter().enumerate() {
                let term = a.checked_mul(*b).ok_or(ExprError::Overflow)?;
                product[i + j] = product[i + j]
                    .checked_add(term)
                    .ok_or(ExprError::Overflow)?;
            }
        }
        Ok(Self(product).trimmed())
    }

    /// The value for a batch.
    pub fn evaluate(&self, batch: i128) -> Result<i128, ExprError> {
        self.0.iter().rev().try_fold(0_i128, |value, coefficient| {
            value
                .checked_mul(batch)
                .and_then(|value| value.checked_add(*coefficient))
                .ok_or(ExprError::Overflow)
        })
    }

    fn trimmed(mut self) -> Self {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
        self
    }
}

/// Recursive descent over `Name(argument, …)`, integers and quoted names.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn expr(&mut self, depth: usize) -> Result<Expr, ExprError> {
        if depth > EXPRESSION_DEPTH_MAX {
            return Err(ExprError::TooLarge);
        }
        let name = self.word()?;
        self.spaces();
        if self.peek() != Some('(') {
            return Ok(name
                .parse()
                .map_or_else(|_| Expr::Opaque(name.to_owned()), Expr::Int));
        }
        self.take('(')?;
        match name {
            "Integer" => {
                let start = self.at;
                let value = self.word()?.parse().map_err(|_| ExprError::Syntax(start))?;
                self.take(')')?;
                Ok(Expr::Int(value))
            }
            "Symbol" => {
                let symbol = self.quoted()?.to_owned();
                self.assumptions()?;
                Ok(Expr::Symbol(symbol))
            }
            _ => {
                let start = self.at;
                let arguments = self.arguments(depth)?;
                build(name, arguments).ok_or(ExprError::Syntax(start))
            }
        }
    }

    fn arguments(&mut self, depth: usize) -> Result<Vec<Expr>, ExprError> {
        let mut arguments = Vec::new();
        loop {
            self.spaces();
            if self.peek() == Some(')') {
                self.at += 1;
                return Ok(arguments);
            }
            if !arguments.is_empty() {
                self.take(',')?;
            }
            arguments.push(self.expr(depth + 1)?);
        }
    }

    /// `, positive=True, integer=True)`: what sympy may assume of a symbol; sizes are positive integers anyway.
    fn assumptions(&mut self) -> Result<(), ExprError> {
        loop {
            self.spaces();
            if self.peek() == Some(')') {
                self.at += 1;
                return Ok(());
            }
            self.take(',')?;
            self.word()?;
            self.take('=')?;
            self.word()?;
        }
    }

    fn word(&mut self) -> Result<&'a str, ExprError> {
        self.spaces();
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.'))
            .unwrap_or(rest.len());
        if end == 0 {
            return Err(ExprError::Syntax(self.at));
        }
        self.at += end;
        Ok(&rest[..end])
    }

    fn quoted(&mut self) -> Result<&'a str, ExprError> {
        self.take('\'')?;
        let rest = &self.text[self.at..];
        let end = rest.find('\'').ok_or(ExprError::Syntax(self.at))?;
        self.at += end + 1;
        Ok(&rest[..end])
    }

    fn take(&mut self, expected: char) -> Result<(), ExprError> {
        self.spaces();
        if self.peek() == Some(expected) {
            self.at += expected.len_utf8();
            return Ok(());
        }
        Err(ExprError::Syntax(self.at))
    }

    fn spaces(&mut self) {
        while self.peek() == Some(' ') {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }
}

/// A known function with the right number of arguments; an unknown one stays opaque.
fn build(name: &str, mut arguments: Vec<Expr>) -> Option<Expr> {
    let mut two = |make: fn(Box<Expr>, Box<Expr>) -> Expr| {
        let second = arguments.pop()?;
        let first = arguments.pop()?;
        arguments
            .is_empty()
            .then(|| make(Box::new(first), Box::new(second)))
    };
    match name {
        "Pow" | "PowByNatural" => two(Expr::Pow),
        "FloorDiv" | "CleanDiv" => two(Expr::FloorDiv),
        "Mod" | "PythonMod" => two(Expr::Mod),
        "Add" => Some(Expr::Add(arguments)),
        "Mul" => Some(Expr::Mul(arguments)),
        "Min" if !arguments.is_empty() => Some(Expr::Min(arguments)),
        "Max" if !arguments.is_empty() => Some(Expr::Max(arguments)),
        "Min" | "Max" => None,
        other => Some(Expr::Opaque(other.to_owned())),
    }
}

impl<'de> Deserialize<'de> for Expr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BATCH: &str = "Symbol('s77', positive=True, integer=True)";

    fn at(text: &str, batch: i64) -> i64 {
        Expr::parse(text)
            .unwrap()
            .evaluate(&BTreeMap::from([("s77".to_owned(), batch)]))
            .unwrap()
    }

    #[test]
    fn expressions_of_real_exports_have_their_value() {
        assert_eq!(at(BATCH, 4), 4);
        assert_eq!(at(&format!("Mul(Integer(384), {BATCH})"), 4), 1_536);
        assert_eq!(
            at(&format!("Min(Integer(16), Mul(Integer(16), {BATCH}))"), 4),
            16
        );
        assert_eq!(
            at(&format!("Add(Integer(-1), Pow({BATCH}, Integer(2)))"), 5),
            24
        );
        assert_eq!(
            at(
                &format!("FloorDiv(Mul(Integer(-7), {BATCH}), Integer(2))"),
                1
            ),
            -4
        );
        assert_eq!(at(&format!("Mod({BATCH}, Integer(-4))"), 7), -1);
    }

    #[test]
    fn a_function_without_meaning_may_stand_but_has_no_value() {
        let expr = Expr::parse(&format!("Mul(Rational(1, 2), {BATCH})")).unwrap();
        assert_eq!(
            expr.polynomial("s77"),
            Err(ExprError::Unsupported("Rational".to_owned()))
        );
    }

    #[test]
    fn polynomials_agree_with_values_and_know_their_degree() {
        let expr = Expr::parse(&format!(
            "Add(Integer(3), Mul(Integer(5), {BATCH}, Add({BATCH}, Integer(2))))"
        ))
        .unwrap();
        let polynomial = expr.polynomial("s77").unwrap();
        assert_eq!(
            (
                polynomial.coefficient(0),
                polynomial.coefficient(1),
                polynomial.coefficient(2)
            ),
            (3, 10, 5)
        );
        assert_eq!(polynomial.degree(), 2);
        assert_eq!(polynomial.evaluate(7), Ok(318));
        assert_eq!(
            Expr::parse(BATCH).unwrap().polynomial("s0"),
            Err(ExprError::Unbound("s77".to_owned()))
        );
    }

    #[test]
    fn nesting_and_length_are_bounded() {
        let deep = format!("{}Integer(1){}", "Add(".repeat(100), ")".repeat(100));
        assert_eq!(Expr::parse(&deep), Err(ExprError::TooLarge));
        assert_eq!(
            Expr::parse(&" ".repeat(EXPRESSION_BYTES_MAX + 1)),
            Err(ExprError::TooLarge)
        );
        let wide = format!("Pow(Integer(9), {BATCH})");
        assert_eq!(
            Expr::parse(&wide)
                .unwrap()
                .evaluate(&BTreeMap::from([("s77".to_owned(), 99)])),
            Err(ExprError::Overflow)
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[A-Za-z0-9(), '=_.é-]{0,120}") {
            if let Ok(expr) = Expr::parse(&text) {
                drop(expr.polynomial("s77"));
                drop(expr.evaluate(&BTreeMap::new()));
            }
        }
    }
}
