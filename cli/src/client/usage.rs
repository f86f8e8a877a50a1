//! What calls of models used: sums, windows, and usage files, which are checked against receipts.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
};

use anyhow::Context as _;
use comptoir_domain::{
    atto::Atto,
    calls::CallsBill,
    digest::Sha256,
    usage::{Counted, HEADER, LINE_BYTES_MAX, UsageDigest, UsageRecord},
};
use futures::StreamExt as _;
use reqwest::{Method, header};
use tokio::{fs, io::AsyncWriteExt as _};
use url::form_urlencoded::Serializer;

use super::Context;
use crate::{
    args::usage::UsageArgs,
    exit::{Exit, coded},
    output,
};

/// What is shown of a sum.
const SUM: &[&str] = &[
    "from",
    "key_id",
    "model_id",
    "version_id",
    "calls",
    "rows",
    "input_tokens",
    "output_tokens",
    "cost_base",
];
/// What is shown of a usage window.
const WINDOW: &[&str] = &[
    "id",
    "state",
    "model_id",
    "calls",
    "cost_base",
    "charged",
    "receipt_id",
];

/// Shows what was used, or writes it to a file.
///
/// # Errors
/// When the service or the file refuses.
pub async fn run(context: &Context, args: &UsageArgs) -> anyhow::Result<()> {
    let api = context.api().await?;
    if let Some(file) = &args.csv {
        return download(context, args, file).await;
    }
    let (path, fields) = if args.windows {
        (query("/v1/usage/windows", args, &[]), WINDOW)
    } else {
        let group_by = Some(args.group_by.join(","));
        let window = Some(args.window.clone());
        let own = [("group_by", &group_by), ("window", &window)];
        (query("/v1/usage", args, &own), SUM)
    };
    context.output.list(&api.get(&path).await?, fields);
    Ok(())
}

fn query(path: &str, args: &UsageArgs, own: &[(&str, &Option<String>)]) -> String {
    let start = format!("{path}?");
    let length = start.len();
    let mut query = Serializer::for_suffix(start, length);
    let shared = [
        ("from", &args.from),
        ("to", &args.to),
        ("model", &args.model),
        ("key", &args.key),
        ("cursor", &args.page.cursor),
    ];
    for (name, value) in shared.iter().chain(own) {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.append_pair("limit", &args.page.limit.to_string());
    query.finish()
}

/// Writes the calls as they arrive: a file of them may be long.
async fn download(context: &Context, args: &UsageArgs, path: &Path) -> anyhow::Result<()> {
    let api = context.api().await?;
    let of = [("window", &args.of)];
    let request = api
        .request(Method::GET, &query("/v1/usage/events", args, &of))
        .header(header::ACCEPT, "text/csv");
    let mut pieces = api.send(request).await?.bytes_stream();
    let write = || format!("write {}", path.display());
    let partial = path.with_added_extension("partial");
    let mut file = fs::File::create(&partial).await.with_context(write)?;
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece.context("the service stopped in the middle of the file")?;
        file.write_all(&piece).await.with_context(write)?;
        bytes += piece.len();
    }
    file.sync_all().await.with_context(write)?;
    fs::rename(&partial, path).await.with_context(write)?;
    output::tell(format_args!("{bytes} bytes in {}", path.display()));
    Ok(())
}

/// Checks a usage file against a bill: its lines are calls of the bill's window at the bill's price, they add up to what the bill counts, and the
/// file is the one that the receipt names.
///
/// # Errors
/// With [`Exit::NotVerified`] where one of these does not hold.
pub fn check(path: &Path, bill: &CallsBill, named: Option<Sha256>) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut lines = Lines(BufReader::new(file));
    if lines.next()?.as_deref() != Some(HEADER) {
        return Err(refused("it does not begin as a usage file does"));
    }
    let (mut counted, mut cost) = (Counted::default(), Atto::ZERO);
    let mut digest = UsageDigest::default();
    let mut last = None;
    while let Some(line) = lines.next()? {
        let number = counted.calls + 2;
        let at = |what: &str| refused(&format!("line {number} {what}"));
        let record: UsageRecord = line.parse().map_err(|_| at("is no call"))?;
        let is_of_bill = record.window == Some(bill.window)
            && (record.model, record.version) == (bill.model, bill.version)
            && record.price == bill.price_number;
        if !is_of_bill {
            return Err(at("is of another window"));
        }
        if bill.tariff.cost(&record.usage) != Some(record.cost) {
            return Err(at("does not cost what the price says"));
        }
        if last
            .replace(record.call)
            .is_some_and(|it| it >= record.call)
        {
            return Err(at("is not in order, or a call stands twice"));
        }
        let sums = counted
            .with(&record.usage)
            .zip(cost.checked_add(record.cost));
        (counted, cost) = sums.ok_or_else(|| at("is too much to be added"))?;
        digest.add(&record);
    }
    if (counted, cost) != (bill.counted, bill.amount_atto) {
        return Err(refused("its sums are not those of the bill"));
    }
    match named {
        Some(named) if named != digest.finish() => Err(refused("the receipt names another file")),
        Some(_) => Ok(()),
        None => Err(refused("the receipt does not tell which file it names")),
    }
}

fn refused(why: &str) -> anyhow::Error {
    coded(
        Exit::NotVerified,
        format!("the usage file is not the bill's: {why}"),
    )
}

/// Lines of a file, each with its end and within bounds.
struct Lines(BufReader<File>);

impl Lines {
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
        let mut line = String::new();
        let read = self.0.by_ref().take(most).read_line(&mut line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) if line.pop() == Some('\n') => Ok(Some(line)),
            Ok(_) => Err(refused("a line of it has no end")),
            Err(error) => Err(refused(&error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use comptoir_domain::{
        amount::Amount,
        id::{CallId, ModelId, ModelVersionId, SplitVersionId, UsageWindowId, WorkerId},
        model::{Tariff, Usage},
        price::Rate,
    };
    use time::macros::datetime;

    fn bill(calls: u64) -> CallsBill {
        let tariff = Tariff {
            call_nano: Rate::from_nano(1_500_000_000).unwrap(),
            ..Tariff::default()
        };
        let counted = Counted {
            calls,
            rows: calls,
            ..Counted::default()
        };
        CallsBill {
            window: UsageWindowId::generate(),
            model: ModelId::generate(),
            version: ModelVersionId::generate(),
            price_number: 1,
            tariff,
            counted,
            amount_atto: tariff.cost_of(calls, &counted.usage()).unwrap(),
            used_before_atto: Atto::ZERO,
            charged_before_base: Amount::ZERO,
            covered_base: Amount::ZERO,
            gross_base: Amount::ZERO,
            split_version: SplitVersionId::generate(),
            parties: vec![],
        }
    }

    fn lines(bill: &CallsBill) -> Vec<String> {
        let usage = Usage {
            rows: 1,
            ..Usage::default()
        };
        let record = |_| UsageRecord {
            call: CallId::generate(),
            at: datetime!(2026-11-23 18:00 UTC),
            window: Some(bill.window),
            key: None,
            model: bill.model,
            version: bill.version,
            price: 1,
            worker: WorkerId::generate(),
            usage,
            cost: bill.tariff.cost(&usage).unwrap(),
            duration_us: 1,
        };
        (0..bill.counted.calls)
            .map(|it| record(it).to_string())
            .collect()
    }

    /// What is said of a file of these lines.
    fn checked(bill: &CallsBill, lines: &[String], change: impl Fn(String) -> String) -> String {
        let text = |lines: &[String]| format!("{HEADER}\n{}\n", lines.join("\n"));
        let named = Sha256::of(text(lines).as_bytes());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage.csv");
        std::fs::write(&path, change(text(lines))).unwrap();
        match check(&path, bill, Some(named)) {
            Ok(()) => "fits".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_usage_file_fits_its_bill_and_one_changed_byte_is_found() {
        let bill = bill(3);
        let lines = lines(&bill);
        assert_eq!(checked(&bill, &lines, |text| text), "fits");
        let says = |change: &dyn Fn(String) -> String, what: &str| {
            let said = checked(&bill, &lines, change);
            assert!(said.contains(what), "{said}");
        };
        says(
            &|text| text.replacen("call,at", "call,on", 1),
            "does not begin",
        );
        says(
            &|text| text.replace(",1500000000000000000,", ",1,"),
            "line 2 does not cost",
        );
        says(&|text| text.replacen(",1\n", ",2\n", 1), "another file");
        says(
            &|text| text.replacen(&format!("{}\n", lines[2]), "", 1),
            "its sums",
        );
        says(&|text| text + &lines[2] + "\n", "line 5 is not in order");
        says(
            &|text| text.replacen("uwn_", "uwx_", 1),
            "line 2 is no call",
        );
        says(&|text| text.trim_end().to_owned(), "has no end");
        says(&|text| text + &"x".repeat(600), "has no end");
        let other = UsageWindowId::generate().to_string();
        let own = bill.window.to_string();
        says(
            &|text| text.replace(&own, &other),
            "line 2 is of another window",
        );
    }
}
