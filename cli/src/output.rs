//! What commands print: tables on a terminal, JSON when piped or asked for. Progress goes to stderr.

use std::{
    borrow::Cow,
    fmt::{Display, Write as _},
    io::{ErrorKind, IsTerminal as _, Write as _},
};

use comfy_table::{ContentArrangement, Table, presets::UTF8_HORIZONTAL_ONLY};
use comptoir_domain::name::is_readable;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// The exit code of a program that SIGPIPE ended, as shells show it.
const PIPE_CLOSED: i32 = 128 + 13;

/// Prints lines, [`printable`]. When nobody reads any more, as after `| head -1`, there is nothing left to do: the process ends.
///
/// # Panics
/// When stdout cannot be written to for another reason, as `println!` does.
pub fn say(line: impl Display) {
    let line = line.to_string();
    match writeln!(std::io::stdout().lock(), "{}", printable(&line)) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(PIPE_CLOSED),
        Err(error) => panic!("print to stdout: {error}"),
    }
}

/// Tells people something beside what is asked for, on stderr, [`printable`].
pub fn tell(line: impl Display) {
    eprintln!("comptoir: {}", printable(&line.to_string()));
}

/// Text with the characters that do not show, or turn others around, written out as JSON writes them; line breaks and tabs stay. Whoever put them into a
/// name or a message would else write to the reader's terminal. JSON means the same afterwards.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_readable) {
        return Cow::Borrowed(text);
    }
    let mut written = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_readable(character) {
            written.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(written, "\\u{unit:04x}").expect("a string takes it");
            }
        }
    }
    Cow::Owned(written)
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Output {
    /// JSON when asked for, or when nobody looks.
    #[must_use]
    pub fn choose(json: bool) -> Self {
        if json || !std::io::stdout().is_terminal() {
            Self::Json
        } else {
            Self::Table
        }
    }

    /// Prints one object, the named fields in that order on a terminal.
    pub fn object(self, object: &Value, fields: &[&str]) {
        match self {
            Self::Json => say(format_args!("{object:#}")),
            Self::Table => {
                let mut table = table();
                for field in fields {
                    table.add_row([(*field).to_owned(), text(pick(object, field))]);
                }
                say(table);
            }
        }
    }

    /// Prints a list, one object a row.
    pub fn list(self, list: &Value, fields: &[&str]) {
        let rows = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        match self {
            Self::Json => say(format_args!("{list:#}")),
            Self::Table if rows.is_empty() => say("none"),
            Self::Table => {
                let mut table = table();
                table.set_header(fields);
                for row in rows {
                    table.add_row(fields.iter().map(|field| text(pick(row, field))));
                }
                say(table);
                if list["has_more"] == true {
                    say(format_args!(
                        "there are more: --limit, --cursor {}",
                        text(&list["next_cursor"])
                    ));
                }
            }
        }
    }
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    // A terminal that was never told its size, as under `script`, says 0: then lines are as long as they are.
    if table.width().is_some_and(|columns| columns > 0) {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

/// The value at a dotted path.
fn pick<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |value, key| &value[key])
}

/// A value as people read it: money in whole tokens.
#[must_use]
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        // Before the table is laid out, which counts characters.
        Value::String(text) => printable(text).into_owned(),
        // A money body: the amount in whole tokens, exactly.
        Value::Object(fields)
            if fields.contains_key("amount") && fields.contains_key("decimals") =>
        {
            let amount = fields["amount"].as_str().unwrap_or_default();
            let decimals = fields["decimals"]
                .as_u64()
                .and_then(|it| usize::try_from(it).ok());
            whole_tokens(amount, decimals.unwrap_or_default())
        }
        other => printable(&other.to_string()).into_owned(),
    }
}

/// Base units as a decimal number of tokens: exact, no rounding.
#[must_use]
pub fn whole_tokens(base: &str, decimals: usize) -> String {
    if let Some(debit) = base.strip_prefix('-') {
        return format!("-{}", whole_tokens(debit, decimals));
    }
    let padded = format!("{base:0>width$}", width = decimals + 1);
    let (whole, fraction) = padded.split_at(padded.len() - decimals);
    match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    }
}

/// Whole tokens as base units.
///
/// # Errors
/// When the text is not a decimal number, or finer than a base unit.
pub fn base_units(tokens: &str, decimals: usize) -> Result<String, InvalidTokens> {
    let (whole, fraction) = tokens.split_once('.').unwrap_or((tokens, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > decimals {
        return Err(InvalidTokens { decimals });
    }
    let base = format!("{whole}{fraction:0<decimals$}");
    let base = base.trim_start_matches('0');
    Ok(if base.is_empty() { "0" } else { base }.to_owned())
}

/// Not a number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of tokens such as 12.5, with at most {decimals} decimals")]
pub struct InvalidTokens {
    decimals: usize,
}

/// A bar for something whose length is known; hidden when stderr is not a terminal.
#[must_use]
pub fn bar(length: u64, what: &str, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is a constant of ours");
    ProgressBar::new(length)
        .with_style(style)
        .with_message(printable(what).into_owned())
}

/// A spinner for something whose end is not known.
#[must_use]
pub fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(printable(what).into_owned());
    spinner.enable_steady_tick(std::time::Duration::from_millis(120));
    spinner
}

/// Bytes moved, with speed.
pub const BYTES: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}";
/// Steps done.
pub const STEPS: &str = "{msg} {wide_bar} {pos}/{len}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_base_units_are_exact_in_both_directions() {
        for (tokens, base) in [
            ("0", "0"),
            ("1", "1000000000000000000"),
            ("0.000000000000000001", "1"),
            ("12.5", "12500000000000000000"),
        ] {
            assert_eq!(base_units(tokens, 18).unwrap(), base);
            assert_eq!(whole_tokens(base, 18), tokens);
        }
    }

    #[test]
    fn what_is_finer_than_a_base_unit_is_refused() {
        for text in [
            "",
            ".5",
            "-1",
            "1e18",
            "0.0000000000000000001",
            "1.2.3",
            "1,5",
        ] {
            assert!(base_units(text, 18).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_that_a_service_says_moves_the_cursor() {
        let foreign = "\u{1b}[2J\u{9b}31m\u{7}\r\u{7f}é\n\tend";
        let shown = "\\u001b[2J\\u009b31m\\u0007\\u000d\\u007fé\n\tend";
        assert_eq!(printable(foreign), shown);
        assert_eq!(text(&serde_json::json!(foreign)), shown);
        let turned = "\u{202e}gpj.exe\u{200b}\u{e0041}";
        assert_eq!(printable(turned), "\\u202egpj.exe\\u200b\\udb40\\udc41");
        let document = serde_json::json!({ turned: turned });
        let read: Value = serde_json::from_str(&printable(&document.to_string())).unwrap();
        assert_eq!(read, document, "it means the same");
        assert_eq!(text(&serde_json::json!(["\u{9b}"])), r#"["\u009b"]"#);
        assert!(matches!(printable("plain\n"), Cow::Borrowed(_)));
        // Also in JSON, which leaves the one-byte escape as it is: it means the same.
        let document = serde_json::json!({ foreign: foreign });
        let written = format!("{document:#}");
        assert!(written.contains('\u{9b}') && !printable(&written).contains('\u{9b}'));
        let read: Value = serde_json::from_str(&printable(&written)).unwrap();
        assert_eq!(read, document);
    }

    #[test]
    fn a_money_body_reads_as_tokens() {
        let money =
            serde_json::json!({"amount": "1500000", "asset": "eip155:1/erc20:0x0", "decimals": 6});
        assert_eq!(text(&money), "1.5");
        assert_eq!(whole_tokens("-1500000", 6), "-1.5");
    }
}
