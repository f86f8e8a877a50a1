//! Puts the client-facing service together.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::Context as _;
use comptoir_api::{
    AppState, Config, Purchases, Rereads, RootKeyRing, Submissions, Uploads,
    auth::{
        callers::Callers, contract_wallets::ContractWallets, keys::Keys, password::Hasher,
        sign_ins::SignIns,
    },
    calls::{Calls, Terms},
    mail::Mailer,
    webhooks::{Webhooks, guard::Guard},
};
use comptoir_checker::Checker;
use comptoir_domain::credential::Environment;
use comptoir_http::{Edge, rate_limit::Shared, server::Limits};
use comptoir_store::pool::ServiceRole;
use reqwest::header::HeaderValue;
use secrecy::ExposeSecret as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    clock,
    config::ApiArgs,
    parts::{self, Running},
};
use crate::keys::{self, ServiceKeys};

/// Runs it until a signal.
///
/// # Errors
/// When it cannot start, or its listener fails.
pub async fn run(args: ApiArgs) -> anyhow::Result<()> {
    let stop = super::until_signal()?;
    parts::serve_metrics(args.common.metrics_listen, &stop).await?;
    start(args, stop).await?.ended().await
}

/// Starts it; it ends when `stop` is cancelled.
///
/// # Errors
/// When a part does not come up.
pub async fn start(args: ApiArgs, stop: CancellationToken) -> anyhow::Result<Running> {
    comptoir_api::metrics::describe();
    let secrets = ServiceKeys::read(&args.web.keys)?;
    let origin = parts::origin(&args.web.public_url);
    let shared = parts::shared_limits(&args.web)?;
    let db = parts::connect(&args.common, ServiceRole::Api).await?;
    clock::follow(&db, &stop).await?;
    let state = AppState {
        db,
        admin_db: parts::connect_few(&args.common, ServiceRole::Admin)
            .await?
            .into(),
        clock: super::now,
        objects: parts::objects(&args.common)?,
        wake: parts::wake(&args.web)?,
        keys: Arc::new(Keys::new(secrets.secrets()?, &origin)?),
        config: Arc::new(Config {
            public_origin: origin,
            scheduler_url: parts::origin(&args.scheduler_url),
            environment: environment(args.web.live),
            sign_in_chains: args.sign_in_chains.clone(),
            limits: args.allowances.limits(),
            refund_caps: args.allowances.refund_caps()?,
            market_ppm: args.allowances.market_ppm,
            edge: edge(&args, shared.as_ref())?,
        }),
        root_keys: RootKeyRing::new(keys::root_keys(&args.web.keys)?),
        checker: Checker::new(std::env::current_exe()?, &["check-file"]),
        passwords: Hasher::default(),
        sign_ins: SignIns::new(shared.as_ref()),
        mailer: mailer(&args)?,
        webhooks: Webhooks::new(Guard::new(args.webhooks_to_private.clone()))
            .context("set webhooks up")?,
        contract_wallets: args
            .rpc_url
            .clone()
            .map(|rpc| Arc::new(ContractWallets::new(rpc))),
        callers: Callers::default(),
        rereads: Rereads::default(),
        submissions: Submissions::default(),
        purchases: Purchases::default(),
        calls: Calls::new(parts::relay(&args.web)?, Terms::default()),
        uploads: Uploads::default(),
    };
    let signing = Arc::clone(&state.keys);
    let roots = state.root_keys.clone();
    keys::follow_roots(&args.web.keys, stop.clone(), move |keys| {
        roots.replace(keys);
    });
    keys::follow(&args.web.keys, stop.clone(), move |ring| {
        signing.replace(ring);
    });
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "api listens");
    let serving =
        comptoir_api::server::serve(listener, state, Limits::default(), stop.cancelled_owned());
    Ok(Running::spawn("api", address, async { Ok(serving.await?) }))
}

fn edge(args: &ApiArgs, shared: Option<&Arc<Shared>>) -> anyhow::Result<Edge> {
    let cors_origins = args.cors_origins.iter().map(|origin| {
        let url: Url = origin.parse()?;
        let exact = parts::origin(&url);
        anyhow::ensure!(exact == *origin, "an origin is `{exact}`, not `{origin}`");
        Ok(HeaderValue::try_from(exact)?)
    });
    let limits = parts::rate_limits(
        ("default", args.rate_limit, args.rate_limit_anonymous),
        shared,
    )?;
    let calls = NonZeroU32::new(args.call_rate_limit).map(|it| parts::per_minute("calls", it));
    Ok(Edge {
        trusted_proxy_hops: args.web.trusted_proxy_hops,
        limits: limits.map(|it| match calls {
            Some(policy) => it.apart(comptoir_api::is_call, policy, shared),
            None => it,
        }),
        cors_origins: cors_origins
            .collect::<anyhow::Result<_>>()
            .context("COMPTOIR_CORS_ORIGINS")?,
    })
}

fn mailer(args: &ApiArgs) -> anyhow::Result<Option<Mailer>> {
    let Some(url) = &args.mail_url else {
        tracing::warn!("no mail is sent: COMPTOIR_MAIL_URL is not set");
        return Ok(None);
    };
    let host = args.web.public_url.host_str().unwrap_or("localhost");
    let from = args.mail_from.clone();
    let from = from.unwrap_or_else(|| format!("Comptoir <no-reply@{host}>"));
    let mailer = Mailer::open(url.expose_secret(), &from).context("COMPTOIR_MAIL_URL")?;
    Ok(Some(mailer))
}

const fn environment(live: bool) -> Environment {
    if live {
        Environment::Live
    } else {
        Environment::Test
    }
}
