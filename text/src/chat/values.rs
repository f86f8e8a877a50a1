//! What a template may do with values, judged before it runs. Fuel counts what is made and not what is shared: a list that has
//! another one twice, thirty times over, is compared or printed for ever, and a namespace that holds itself never ends. So templates
//! make no values of values: lists and namespaces hold texts, numbers and the like, and only those are added up.

use std::{cell::Cell, collections::BTreeMap};

use minijinja::{
    machinery::ast::{BinOpKind, Call, CallArg, CallType, Expr, Filter, Macro, Stmt},
    value::ValueKind,
};

use super::names::Names;

/// How deep values may stand in each other, operators included.
const DEPTH_MAX: usize = 200;
/// Values that are judged, again wherever they are used. What is left over is not known to be a text.
const STEPS_MAX: usize = 1 << 20;
/// How far names are followed.
const NAMES_MAX: usize = 8;
/// Slices of a template: each is a view of another.
const SLICES_MAX: usize = 32;
/// Filters that give texts, numbers and the like.
const PLAIN_FILTERS: [&str; 20] = [
    "abs",
    "capitalize",
    "count",
    "e",
    "escape",
    "float",
    "int",
    "join",
    "length",
    "lower",
    "replace",
    "round",
    "safe",
    "string",
    "title",
    "trim",
    "upper",
    "bool",
    "indent",
    "format",
];
/// Filters that give what they are given, or parts of it.
const OTHER_FILTERS: [&str; 9] = [
    "d",
    "default",
    "first",
    "last",
    "list",
    "rejectattr",
    "reverse",
    "selectattr",
    "split",
];
/// Methods that give texts, numbers and the like.
const PLAIN_METHODS: [&str; 18] = [
    "capitalize",
    "count",
    "endswith",
    "find",
    "get",
    "isalpha",
    "isdigit",
    "isspace",
    "join",
    "lower",
    "lstrip",
    "replace",
    "rfind",
    "rstrip",
    "startswith",
    "strip",
    "title",
    "upper",
];
/// Methods that give lists of what they are given.
const OTHER_METHODS: [&str; 5] = ["items", "keys", "split", "splitlines", "values"];
/// What of a loop is a message.
const NEIGHBOURS: [&str; 2] = ["previtem", "nextitem"];

/// Refuses what could not be bounded.
pub fn check(template: &Stmt<'_>, given: &BTreeMap<String, String>) -> Result<(), String> {
    let mut names = Names::default();
    names.statement(template);
    let mut check = Check {
        names,
        given,
        slices: 0,
        depth: 0,
        steps: Cell::new(STEPS_MAX),
    };
    check.statement(template)
}

struct Check<'t, 's> {
    names: Names<'t, 's>,
    given: &'t BTreeMap<String, String>,
    slices: usize,
    /// How deep the value is that is looked at.
    depth: usize,
    /// Values that may still be judged.
    steps: Cell<usize>,
}

type Checked = Result<(), String>;

impl<'s> Check<'_, 's> {
    fn statements(&mut self, statements: &[Stmt<'s>]) -> Checked {
        statements.iter().try_for_each(|it| self.statement(it))
    }

    fn statement(&mut self, statement: &Stmt<'s>) -> Checked {
        match statement {
            Stmt::Template(it) => self.statements(&it.children),
            Stmt::EmitExpr(it) => self.value(&it.expr),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => Ok(()),
            Stmt::ForLoop(it) if it.recursive => Err("a recursive loop".to_owned()),
            Stmt::ForLoop(it) => {
                self.value(&it.iter)?;
                it.filter_expr.iter().try_for_each(|it| self.value(it))?;
                self.statements(&it.body)?;
                self.statements(&it.else_body)
            }
            Stmt::IfCond(it) => {
                self.value(&it.expr)?;
                self.statements(&it.true_body)?;
                self.statements(&it.false_body)
            }
            Stmt::WithBlock(it) => {
                it.assignments
                    .iter()
                    .try_for_each(|(_, value)| self.value(value))?;
                self.statements(&it.body)
            }
            Stmt::Set(it) => {
                if matches!(it.target, Expr::GetAttr(_)) && !self.is_plain(&it.expr, 0) {
                    return Err(
                        "a namespace that holds another value than a text or a number".to_owned(),
                    );
                }
                self.value(&it.expr)
            }
            Stmt::SetBlock(it) => {
                it.filter.iter().try_for_each(|it| self.value(it))?;
                self.statements(&it.body)
            }
            Stmt::FilterBlock(it) => {
                self.value(&it.filter)?;
                self.statements(&it.body)
            }
            Stmt::Macro(it) => self.declared(it),
            Stmt::CallBlock(it) => {
                self.call(&it.call)?;
                self.declared(&it.macro_decl)
            }
            _ => Err(
                "a statement other than `if`, `for`, `set`, `with`, `filter`, `macro` and `call`"
                    .to_owned(),
            ),
        }
    }

    fn declared(&mut self, it: &Macro<'s>) -> Checked {
        it.defaults.iter().try_for_each(|it| self.value(it))?;
        self.statements(&it.body)
    }

    fn value(&mut self, value: &Expr<'s>) -> Checked {
        if self.depth == DEPTH_MAX {
            return Err(format!("values nested deeper than {DEPTH_MAX} levels"));
        }
        self.depth += 1;
        let checked = self.within(value);
        self.depth -= 1;
        checked
    }

    fn within(&mut self, value: &Expr<'s>) -> Checked {
        match value {
            Expr::Var(_) | Expr::Const(_) => Ok(()),
            Expr::Slice(it) => {
                self.slices += 1;
                if self.slices > SLICES_MAX {
                    return Err(format!("more than {SLICES_MAX} slices"));
                }
                let ends = [&it.start, &it.stop, &it.step];
                ends.into_iter()
                    .flatten()
                    .try_for_each(|it| self.value(it))?;
                self.value(&it.expr)
            }
            Expr::UnaryOp(it) => self.value(&it.expr),
            Expr::BinOp(it) => {
                let plain = [&it.left, &it.right].map(|side| self.is_plain(side, 0));
                match it.op {
                    BinOpKind::Add if plain == [false, false] => Err(
                        "`+` of two values of which neither is known to be a text or a number (`~` joins texts)".to_owned(),
                    ),
                    BinOpKind::Mul if plain != [true, true] => {
                        Err("`*` of a value that is not known to be a text or a number".to_owned())
                    }
                    _ => self.value(&it.left).and_then(|()| self.value(&it.right)),
                }
            }
            Expr::Compare(it) => {
                self.value(&it.expr)?;
                it.ops.iter().try_for_each(|it| self.value(&it.expr))
            }
            Expr::IfExpr(it) => {
                self.value(&it.test_expr)?;
                self.value(&it.true_expr)?;
                it.false_expr.iter().try_for_each(|it| self.value(it))
            }
            Expr::Filter(it) => self.filter(it),
            Expr::Test(it) => {
                self.value(&it.expr)?;
                self.arguments(&it.args)
            }
            Expr::GetAttr(it) => self.value(&it.expr),
            Expr::GetItem(it) => self
                .value(&it.expr)
                .and_then(|()| self.value(&it.subscript_expr)),
            Expr::Call(it) => self.call(it),
            Expr::List(it) => self.literal(it.items.iter()),
            Expr::Tuple(it) => self.literal(it.items.iter()),
            Expr::Map(it) => self.literal(it.keys.iter().chain(&it.values)),
        }
    }

    fn literal<'e>(&mut self, mut items: impl Iterator<Item = &'e Expr<'s>>) -> Checked
    where
        's: 'e,
    {
        items.try_for_each(|it| {
            if self.is_plain(it, 0) {
                return self.value(it);
            }
            Err("a list or map that holds another value than a text or a number".to_owned())
        })
    }

    fn filter(&mut self, it: &Filter<'s>) -> Checked {
        if !PLAIN_FILTERS.contains(&it.name) && !OTHER_FILTERS.contains(&it.name) {
            return Err(format!("the filter `{}`", it.name));
        }
        it.expr.iter().try_for_each(|it| self.value(it))?;
        self.arguments(&it.args)
    }

    fn call(&mut self, it: &Call<'s>) -> Checked {
        match it.identify_call() {
            CallType::Function("namespace") => {
                let is_plain = |it: &CallArg<'s>| matches!(it, CallArg::Kwarg(_, value) if self.is_plain(value, 0));
                if !it.args.iter().all(is_plain) {
                    return Err(
                        "a namespace that holds another value than a text or a number".to_owned(),
                    );
                }
            }
            CallType::Function("range" | "raise_exception" | "caller") => {}
            CallType::Function(name) if self.names.macros.contains(name) => {}
            CallType::Method(on, name)
                if PLAIN_METHODS.contains(&name) || OTHER_METHODS.contains(&name) =>
            {
                self.value(on)?;
            }
            CallType::Function(name) | CallType::Method(_, name) => {
                return Err(format!("a call of `{name}`"));
            }
            CallType::Object(_) => return Err("a call of a value".to_owned()),
        }
        self.arguments(&it.args)
    }

    fn arguments(&mut self, arguments: &[CallArg<'s>]) -> Checked {
        arguments.iter().try_for_each(|it| match it {
            CallArg::Pos(value) | CallArg::Kwarg(_, value) => self.value(value),
            CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                Err("arguments from a list".to_owned())
            }
        })
    }

    /// Is it a text, a number or the like, whatever the messages are? Names are followed so far.
    fn is_plain(&self, value: &Expr<'s>, depth: usize) -> bool {
        let Some(left) = self.steps.get().checked_sub(1) else {
            return false;
        };
        self.steps.set(left);
        let plain = |it| self.is_plain(it, depth);
        match value {
            Expr::Const(it) => !matches!(
                it.value.kind(),
                ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
            ),
            Expr::UnaryOp(_) | Expr::Compare(_) | Expr::Test(_) => true,
            Expr::BinOp(it) => match it.op {
                BinOpKind::ScAnd | BinOpKind::ScOr | BinOpKind::Mul => {
                    plain(&it.left) && plain(&it.right)
                }
                // Of a text and another value comes a text, or an error.
                BinOpKind::Add => plain(&it.left) || plain(&it.right),
                _ => true,
            },
            Expr::IfExpr(it) => plain(&it.true_expr) && it.false_expr.as_ref().is_none_or(plain),
            Expr::Slice(it) => plain(&it.expr),
            Expr::GetAttr(it) => !NEIGHBOURS.contains(&it.name),
            Expr::GetItem(it) => match &it.subscript_expr {
                Expr::Const(key) => key
                    .value
                    .as_str()
                    .is_some_and(|it| !NEIGHBOURS.contains(&it)),
                _ => false,
            },
            Expr::Filter(it) if matches!(it.name, "d" | "default") => {
                it.expr.as_ref().is_some_and(plain) && self.are_plain(&it.args, depth)
            }
            Expr::Filter(it) => PLAIN_FILTERS.contains(&it.name),
            Expr::Call(it) => match it.identify_call() {
                CallType::Function(name) => !matches!(name, "namespace" | "range"),
                CallType::Method(_, name) => {
                    PLAIN_METHODS.contains(&name) && self.are_plain(&it.args, depth)
                }
                CallType::Object(_) => false,
            },
            Expr::Var(_) if depth > NAMES_MAX => false,
            Expr::Var(var) => {
                !self.names.bound.contains(var.id)
                    && match self.names.set.get(var.id) {
                        Some(values) => values.iter().all(|it| self.is_plain(it, depth + 1)),
                        None => self.given.contains_key(var.id),
                    }
            }
            Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => false,
        }
    }

    fn are_plain(&self, arguments: &[CallArg<'s>], depth: usize) -> bool {
        arguments
            .iter()
            .all(|it| matches!(it, CallArg::Pos(value) if self.is_plain(value, depth)))
    }
}
