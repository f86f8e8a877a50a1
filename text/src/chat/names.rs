//! What stands behind the names of a template.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::machinery::ast::{Expr, Macro, Stmt};

/// What the names of a template may stand for, wherever it says so.
#[derive(Default)]
pub struct Names<'t, 's> {
    pub set: BTreeMap<&'s str, Vec<&'t Expr<'s>>>,
    pub bound: BTreeSet<&'s str>,
    pub macros: BTreeSet<&'s str>,
}

impl<'t, 's> Names<'t, 's> {
    fn bind(&mut self, target: &'t Expr<'s>) {
        match target {
            Expr::Var(var) => drop(self.bound.insert(var.id)),
            Expr::Tuple(it) => it.items.iter().for_each(|it| self.bind(it)),
            Expr::List(it) => it.items.iter().for_each(|it| self.bind(it)),
            _ => {}
        }
    }

    fn declare(&mut self, it: &'t Macro<'s>) {
        self.macros.insert(it.name);
        it.args.iter().for_each(|arg| self.bind(arg));
        self.statements(&it.body);
    }

    fn statements(&mut self, statements: &'t [Stmt<'s>]) {
        for statement in statements {
            self.statement(statement);
        }
    }

    pub fn statement(&mut self, statement: &'t Stmt<'s>) {
        match statement {
            Stmt::Template(it) => self.statements(&it.children),
            Stmt::ForLoop(it) => {
                self.bind(&it.target);
                self.statements(&it.body);
                self.statements(&it.else_body);
            }
            Stmt::IfCond(it) => {
                self.statements(&it.true_body);
                self.statements(&it.false_body);
            }
            Stmt::WithBlock(it) => {
                it.assignments
                    .iter()
                    .for_each(|(target, _)| self.bind(target));
                self.statements(&it.body);
            }
            Stmt::Set(it) => match &it.target {
                Expr::Var(var) => self.set.entry(var.id).or_default().push(&it.expr),
                target => self.bind(target),
            },
            Stmt::SetBlock(it) => {
                // What is captured is text.
                if let Expr::Var(var) = &it.target {
                    self.set.entry(var.id).or_default();
                }
                self.statements(&it.body);
            }
            Stmt::FilterBlock(it) => self.statements(&it.body),
            Stmt::Macro(it) => self.declare(it),
            Stmt::CallBlock(it) => self.declare(&it.macro_decl),
            _ => {}
        }
    }
}
