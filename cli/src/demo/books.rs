//! The money: is everything there, is everybody paid, and does every receipt hold?

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use alloy::{
    primitives::{Address, U256},
    providers::ProviderBuilder,
};
use anyhow::{Context as _, bail, ensure};
use comptoir_contracts_bindings::{ComptoirToken, Settlement};
use comptoir_domain::{
    amount::Amount,
    settlement::{AccountDocument, ReceiptDocument, file},
};
use comptoir_store::{assets, ledger};
use reqwest::Method;
use sqlx::PgPool;
use tokio::process::Command;
use url::Url;

use super::people::Person;
use crate::{
    client::{
        http::Api,
        money::{claim_document, send_claim},
        receipts,
        wallet::Wallet,
    },
    exit::Exit,
    up::guardian::judged,
};

/// How long a batch may take from its seal until it is claimable: blocks, finality and the window.
const CLAIMABLE_MAX: Duration = Duration::from_mins(3);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Sums that must agree.
#[derive(Debug, Clone, Copy)]
pub struct Books {
    /// Everything deposited.
    pub deposits: Amount,
    /// Everything locked.
    pub held: Amount,
}

/// Adds up every balance, and refuses a difference.
///
/// # Errors
/// When what everybody has is not what was deposited.
pub async fn conserved(database: &PgPool) -> anyhow::Result<Books> {
    let mut conn = database.acquire().await?;
    let asset = assets::current(&mut conn).await?;
    let house = ledger::house_balances(&mut conn, asset.id).await?;
    let owners = ledger::all_owner_balances(&mut conn, asset.id).await?;
    let of_owners = owners
        .values()
        .flat_map(|it| [it.available, it.held, it.held_back, it.payable]);
    let total = Amount::sum(of_owners.chain([house.fees, house.split_dust]))
        .context("the sum is out of bounds")?;
    ensure!(
        total == house.deposits,
        "{total} base units are owed, {} were deposited",
        house.deposits
    );
    let held =
        Amount::sum(owners.values().map(|it| it.held)).context("the sum is out of bounds")?;
    Ok(Books {
        deposits: house.deposits,
        held,
    })
}

/// Waits until a deposit is credited.
///
/// # Errors
/// When it takes too long.
pub async fn credited(person: &Person, base: u128) -> anyhow::Result<()> {
    wait("the deposit is not credited", async || {
        let balance = person.api.get("/v1/balance").await?;
        Ok((balance["available"]["amount"] == base.to_string()).then_some(()))
    })
    .await
}

/// Waits until a receipt is anchored in a batch whose window has passed, and returns its document.
///
/// # Errors
/// When it takes too long.
pub async fn claimable(reader: &Api, receipt: &str) -> anyhow::Result<ReceiptDocument> {
    wait("the batch does not become claimable", async || {
        let found = reader.get(&format!("/v1/receipts/{receipt}")).await?;
        match found["batch"]["state"].as_str() {
            Some("claimable") => receipts::parse(&found["document"]).map(Some),
            _ => Ok(None),
        }
    })
    .await
}

/// What every payee gets of some receipts.
#[must_use]
pub fn due(receipts: &[ReceiptDocument]) -> BTreeMap<Address, u128> {
    let mut due = BTreeMap::new();
    for split in receipts.iter().flat_map(|it| &it.receipt.splits) {
        *due.entry(split.payee).or_default() += split.amount;
    }
    due
}

/// The payee's leaf as the service hands it out, once it covers `due`.
///
/// # Errors
/// When it takes too long.
pub async fn own_leaf(payee: &Api, due: u128) -> anyhow::Result<AccountDocument> {
    wait(
        "the leaf of the payee does not cover what it earned",
        async || {
            let document = claim_document(payee).await?;
            Ok(document.filter(|it| it.account.payable >= due))
        },
    )
    .await
}

/// An account's leaf, proved from the published leaf file of a batch alone: no account at the service is needed.
///
/// # Errors
/// When the file is not what the batch commits to, or has no such account.
pub async fn published_leaf(
    public: &Api,
    batch: u64,
    account: Address,
) -> anyhow::Result<AccountDocument> {
    let request = public.request(Method::GET, &format!("/v1/batches/{batch}/leaves"));
    let bytes = public.send(request).await?.bytes().await?;
    let (opening, sealed) = file::read(&bytes)?;
    sealed
        .account_document(&opening, account)
        .with_context(|| format!("{account} has no leaf in batch {batch}"))
}

/// Claims a leaf and checks that the payee's token balance moves by exactly `due`.
///
/// # Errors
/// When the contract pays anything else.
pub async fn claim_exactly(
    payee: &Wallet,
    document: &AccountDocument,
    due: u128,
    (token, rpc): (Address, &Url),
) -> anyhow::Result<u64> {
    ensure!(
        document.account.payable == due,
        "the leaf says {}, the receipts {due}",
        document.account.payable
    );
    document.verify().context("the leaf's own proof")?;
    let token = ComptoirToken::new(token, payee.connect(rpc));
    let before = token.balanceOf(payee.address()).call().await?;
    let sent = send_claim(document, payee, rpc).await?;
    let after = token.balanceOf(payee.address()).call().await?;
    ensure!(
        after - before == U256::from(due),
        "the balance moved by {}, not {due}",
        after - before
    );
    Ok(sent.gas)
}

/// Verifies a receipt, then changes one digit in each of its long values, one at a time, and sees it refused.
///
/// # Errors
/// When it does not hold, or holds after a change.
pub async fn verify_and_tamper(document: &ReceiptDocument, rpc: &Url) -> anyhow::Result<usize> {
    receipts::check(document, rpc)
        .await
        .context("the receipt does not verify")?;
    let text = serde_json::to_string(document)?;
    let mut refused = 0;
    // The last digit of every long value that ends in one, in turn.
    for at in changeable(&text) {
        let mut changed = text.clone().into_bytes();
        changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
        let changed =
            serde_json::from_slice(&changed).context("the changed receipt is not JSON")?;
        let outcome = match receipts::parse(&changed) {
            Ok(document) => receipts::check(&document, rpc).await.map(|_| ()),
            Err(error) => Err(error),
        };
        ensure!(
            outcome.is_err(),
            "the receipt verifies although byte {at} was changed"
        );
        refused += 1;
    }
    Ok(refused)
}

/// The same by the command line, as a stranger would: `verify` and `bill` pass, and `verify` refuses the file once a
/// byte of it is changed. A charge is recomputed from its `evidence`: that of a job from the program, that of calls from their usage file.
///
/// # Errors
/// When a command ends otherwise.
pub async fn command_line_agrees(
    document: &ReceiptDocument,
    rpc: &Url,
    evidence: Option<(&str, PathBuf)>,
    folder: &Path,
) -> anyhow::Result<()> {
    let file = folder.join(format!("receipt-{}.json", document.receipt.receipt_id));
    let text = serde_json::to_string_pretty(document)?;
    std::fs::write(&file, &text)?;
    let contract = document.contract.to_string();
    let verify = [
        OsStr::new("verify"),
        file.as_os_str(),
        "--rpc".as_ref(),
        rpc.as_str().as_ref(),
        "--contract".as_ref(),
        contract.as_ref(),
    ];
    ensure!(
        comptoir(&verify).await? == 0,
        "`comptoir verify` refuses the receipt"
    );
    let mut bill = vec![OsStr::new("bill"), file.as_os_str(), "--recompute".as_ref()];
    if let Some((what, file)) = &evidence {
        bill.extend([OsStr::new(what), file.as_os_str()]);
    }
    ensure!(
        comptoir(&bill).await? == 0,
        "`comptoir bill --recompute` comes to another charge"
    );
    let mut changed = text.clone().into_bytes();
    let at = *changeable(&text).first().context("nothing to change")?;
    changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
    std::fs::write(&file, changed)?;
    let code = comptoir(&verify).await?;
    let expected = Exit::NotVerified as i32;
    ensure!(
        code == expected,
        "`comptoir verify` ends with {code} for a changed receipt, not {expected}"
    );
    Ok(())
}

/// Has the second implementation recompute every batch by the command line, as a stranger would; returns how many there are.
///
/// # Errors
/// When it does not find one right.
pub async fn audit_every_batch(contract: Address, service: &Url, rpc: &Url) -> anyhow::Result<u64> {
    let node = ProviderBuilder::new().connect_http(rpc.clone());
    let last = Settlement::new(contract, node).lastBatch().call().await?;
    let contract = contract.to_string();
    for batch in 1..=last {
        let number = batch.to_string();
        let audit = [
            "audit",
            "--batch",
            &number,
            "--contract",
            &contract,
            "--url",
            service.as_str(),
            "--rpc",
            rpc.as_str(),
        ];
        let code = comptoir(&audit.map(OsStr::new)).await?;
        ensure!(
            code == 0,
            "`comptoir audit --batch {batch}` ends with {code}"
        );
    }
    Ok(last)
}

/// Waits until the guardian has found so many batches right; returns how many it has. It must have found none false.
///
/// # Errors
/// When it has, or takes too long.
pub async fn found_right(guardian: SocketAddr, batches: u64) -> anyhow::Result<u64> {
    wait("the guardian does not judge every batch", async || {
        let (right, wrong) = judged(guardian).await?;
        ensure!(wrong == 0, "the guardian finds {wrong} batches false");
        Ok((right >= batches).then_some(right))
    })
    .await
}

async fn comptoir(arguments: &[&OsStr]) -> anyhow::Result<i32> {
    let program = std::env::current_exe()?.with_file_name("comptoir");
    let ended = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await?;
    ended.status.code().context("the command was killed")
}

/// The place of one digit in each quoted value of 20 or more characters, addresses and amounts included.
fn changeable(text: &str) -> Vec<usize> {
    let mut places = Vec::new();
    let mut start = None;
    for (at, byte) in text.bytes().enumerate() {
        match (byte, start) {
            (b'"', None) => start = Some(at),
            (b'"', Some(from)) => {
                if at - from > 20 && text.as_bytes()[at - 1].is_ascii_digit() {
                    places.push(at - 1);
                }
                start = None;
            }
            _ => {}
        }
    }
    places
}

/// Looks again until there is something.
///
/// # Errors
/// When it takes too long, or a look fails.
pub async fn wait<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let give_up = Instant::now() + CLAIMABLE_MAX;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > give_up {
            bail!("{what} within {} s", CLAIMABLE_MAX.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
