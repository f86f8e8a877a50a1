//! Who plays: the services, a client, two owners with a worker each, and those of the market.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::bail;
use sqlx::PgPool;
use url::Url;

use super::{
    people::{Person, WorkerProcess},
    stage::Stage,
    work::Digits,
};
use crate::{
    client::http::Api,
    embedded::Provided,
    up::{Node, NodeOptions},
};

/// Everybody and everything of the story.
pub struct Cast {
    pub node: Node,
    pub database: PgPool,
    pub rpc: Url,
    pub client: Person,
    pub owners: [Person; 2],
    pub workers: [WorkerProcess; 2],
    /// Sells a dataset.
    pub seller: Person,
    /// Buys it.
    pub buyer: Person,
    /// Does not.
    pub researcher: Person,
    pub digits: Digits,
    pub program: PathBuf,
    pub data: PathBuf,
    pub folder: PathBuf,
}

impl Cast {
    /// Starts the services and lets everybody arrive.
    pub async fn gather(
        stage: &mut Stage,
        folder: &Path,
        worker: &Path,
        data: &Path,
    ) -> anyhow::Result<Self> {
        let node = start_node(stage, folder).await?;
        let api = Api::new(node.api_url.clone(), None)?;
        let [client, first, second, seller, buyer, researcher] = stage
            .step(
                "a client, two worker owners, a seller and two who want data sign up and bind their addresses",
                async {
                    let people = [
                        Person::arrive("client", &api).await?,
                        Person::arrive("owner-one", &api).await?,
                        Person::arrive("owner-two", &api).await?,
                        Person::arrive("seller", &api).await?,
                        Person::arrive("buyer", &api).await?,
                        Person::arrive("researcher", &api).await?,
                    ];
                    let lines = people
                        .each_ref()
                        .map(|it| format!("{} {}", it.name, it.wallet.address()));
                    Ok((people, lines.join("\n")))
                },
            )
            .await?;
        let workers = join_workers(stage, folder, worker, &node, [&first, &second]).await?;
        let digits = stage
            .step(
                "the client uploads the digits and the convolutional net",
                async { Ok((Digits::upload(&client.api, data).await?, String::new())) },
            )
            .await?;
        for person in [&client, &first, &second, &seller] {
            node.fund(person.wallet.address()).await?;
        }
        Ok(Self {
            database: node.database().await?,
            rpc: node.embedded_ethereum().parse()?,
            node,
            client,
            owners: [first, second],
            workers,
            seller,
            buyer,
            researcher,
            digits,
            program: data.join("convnet.pt2"),
            data: data.to_owned(),
            folder: folder.to_owned(),
        })
    }
}

async fn start_node(stage: &mut Stage, folder: &Path) -> anyhow::Result<Node> {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let options = NodeOptions {
        folder: folder.to_owned(),
        api: any_port,
        scheduler: any_port,
        reset: false,
        guardian: true,
        provided: Provided::from_env(),
    };
    stage
        .step(
            "Postgres, Redis, a local chain, contracts, api, scheduler, settler and guardian start",
            async {
                let node = Box::pin(Node::start(options)).await?;
                let contract = node.asset.contract;
                let figures = format!(
                    "api {}, scheduler {}, contract {contract}",
                    node.api_url, node.scheduler_url
                );
                Ok((node, figures))
            },
        )
        .await
}

async fn join_workers(
    stage: &mut Stage,
    folder: &Path,
    worker: &Path,
    node: &Node,
    [first, second]: [&Person; 2],
) -> anyhow::Result<[WorkerProcess; 2]> {
    stage
        .step("two owners join one CPU worker each", async {
            let scheduler = node.scheduler_url.as_str();
            let folders = [folder.join("worker-one"), folder.join("worker-two")];
            let one = WorkerProcess::start(first, scheduler, worker, &folders[0]);
            let two = WorkerProcess::start(second, scheduler, worker, &folders[1]);
            let (one, two) = tokio::try_join!(one, two)?;
            let found = first.api.get(&format!("/v1/workers/{}", one.id)).await?;
            Ok((
                [one, two],
                format!("numeric class {}", found["numeric_class"]),
            ))
        })
        .await
}

/// The worker's program: named, beside this one, or on the PATH.
///
/// # Errors
/// When there is none; says what to run.
pub fn find_worker(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = || {
        Some(
            std::env::current_exe()
                .ok()?
                .with_file_name("comptoir-worker"),
        )
    };
    let found = named
        .map(Path::to_owned)
        .or_else(|| beside().filter(|it| it.is_file()));
    match found.or_else(|| crate::embedded::find_program("comptoir-worker", &[])) {
        Some(path) if path.is_file() => Ok(path),
        Some(path) => bail!("there is no worker at {}", path.display()),
        None => bail!("comptoir-worker is missing: run `make build`"),
    }
}
