//! The command line as somebody uses it who has signed in.

use std::process::Command;

use serde_json::Value;

use crate::guardian_world::{Ended, World};

/// Exit codes of the command line.
pub const REFUSED: i32 = 5;
pub const CREDENTIALS: i32 = 3;
pub const NOT_FOUND: i32 = 4;

/// Somebody at a terminal, signed in or not.
pub struct Terminal<'a> {
    pub world: &'a World,
    pub name: &'static str,
}

impl Terminal<'_> {
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.command(arguments);
        command
            .env("COMPTOIR_URL", self.world.api.base().as_str())
            .env(
                "COMPTOIR_PROFILE",
                self.world.path(&format!("{}.json", self.name)),
            )
            .env("COMPTOIR_PASSWORD", "a long enough password");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.command(arguments))
    }

    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> Value {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.trouble);
        ended.said
    }

    #[track_caller]
    pub fn refused(&self, arguments: &[&str], code: i32, says: &str) {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        assert!(ended.trouble.contains(says), "{arguments:?}: {ended:?}");
    }
}
