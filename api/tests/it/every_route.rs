//! What holds for every operation of the document, present and future.

use std::{collections::BTreeSet, path::Path};

use axum::http::{Method, StatusCode, header};
use comptoir_domain::scope::{Scope, Scopes};
use comptoir_http::codes;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::{Reply, Session, TestApp};

/// Operations that answer without credentials. Only a protocol of others, whose clients bring none, makes it grow.
const PUBLIC: &[(&str, &str)] = &[
    ("get", "/.well-known/jwks.json"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/v1/batches"),
    ("get", "/v1/batches/{id}"),
    ("get", "/v1/batches/{id}/leaves"),
    // The link is the credential.
    ("get", "/v1/links/{secret}"),
    ("get", "/v2"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/version"),
    ("post", "/v1/accounts"),
    ("post", "/v1/admin/setup"),
    ("post", "/v1/auth/logout"),
    ("post", "/v1/auth/password"),
    ("post", "/v1/auth/password/resets"),
    ("post", "/v1/auth/refresh"),
    ("post", "/v1/auth/siwe"),
    ("post", "/v1/auth/siwe/nonce"),
    ("post", "/v1/auth/token"),
];

/// Makes an object of the tenant's and says the value of each path parameter, in order.
type MakeObject = for<'a> fn(&'a TestApp, &'a Session) -> BoxFuture<'a, Vec<String>>;

/// How to make the objects of the routes with parameters, by the beginning of the path. Whoever adds such a
/// route adds its line.
const OBJECTS: &[(&str, MakeObject)] = &[
    ("/v1/keys/{id}", |app, owner| {
        Box::pin(crate::keys::make(app, owner))
    }),
    ("/v1/receipts/{id}", |app, owner| {
        Box::pin(crate::settlement::make(app, owner))
    }),
    ("/v1/withdrawals/{id}", |app, owner| {
        Box::pin(crate::money::make(app, owner))
    }),
    ("/v1/blobs/{sha256}", |app, owner| {
        Box::pin(crate::blobs::make(app, owner))
    }),
    ("/v1/contributions/{contribution}/withdraw", |app, giver| {
        Box::pin(crate::contributions::make_given(app, giver))
    }),
    ("/v1/contributions/{contribution}", |app, owner| {
        Box::pin(crate::contributions::make(app, owner))
    }),
    ("/v1/datasets/{dataset}/contribution-terms", |app, owner| {
        Box::pin(crate::contributions::make_terms(app, owner))
    }),
    ("/v1/datasets/{dataset}/releases/{job}", |app, owner| {
        Box::pin(crate::datasets::computing::make(app, owner))
    }),
    ("/v1/datasets/{dataset}", |app, owner| {
        Box::pin(crate::datasets::make(app, owner))
    }),
    ("/v1/admissions/{admission}", |app, creator| {
        Box::pin(crate::admissions::make(app, creator))
    }),
    ("/v1/models/{model}", |app, owner| {
        Box::pin(crate::models::make(app, owner))
    }),
    ("/v2/models/{model}", |app, owner| {
        Box::pin(crate::models::make(app, owner))
    }),
    ("/v1/offers/{offer}", |app, owner| {
        Box::pin(crate::purchases::make_offer(app, owner))
    }),
    ("/v1/purchases/{purchase}", |app, owner| {
        Box::pin(crate::purchases::make(app, owner, "free"))
    }),
    ("/v1/sales/{purchase}", |app, owner| {
        Box::pin(crate::purchases::make_sale(app, owner))
    }),
    ("/v1/subscriptions/{subscription}", |app, owner| {
        Box::pin(crate::purchases::make(app, owner, "subscribe"))
    }),
    ("/v1/takedowns/{takedown}/contest", |app, seller| {
        Box::pin(crate::takedowns::make_frozen(app, seller))
    }),
    ("/v1/takedowns/{takedown}", |app, claimant| {
        Box::pin(crate::takedowns::make(app, claimant))
    }),
    ("/v1/quotes/{id}", |app, owner| {
        Box::pin(crate::quotes::make(app, owner))
    }),
    ("/v1/jobs/{id}", |app, owner| {
        Box::pin(crate::jobs::make(app, owner))
    }),
    ("/v1/workers/{id}", |app, owner| {
        Box::pin(crate::workers::make(app, owner))
    }),
    ("/v1/webhook-endpoints/{id}", |app, owner| {
        Box::pin(crate::webhooks::make(app, owner))
    }),
    ("/v1/events/{id}", |app, owner| {
        Box::pin(crate::webhooks::make_event(app, owner))
    }),
    ("/v1/join-tokens/{id}", |app, owner| {
        Box::pin(crate::workers::make_token(app, owner))
    }),
];

/// What is sent to an operation that does not take an empty object, by the end of its path.
const BODIES: &[(&str, &str)] = &[
    ("/deprecate", r#"{"message":"old"}"#),
    ("/deny", r#"{"reason":"no"}"#),
    (
        "/offers",
        r#"{"kind":"buy","price":{"amount":"5","asset":"eip155:31337/erc20:0x1111111111111111111111111111111111111111","decimals":18}}"#,
    ),
    ("/v1/models/{model}/prices", r#"{"tariff":{}}"#),
    (
        "/v1/models/{model}/versions",
        r#"{"job":"job_01h455vb4pex5vsknk084sn02q"}"#,
    ),
    ("/visibility", r#"{"visibility":"private"}"#),
    (
        "/prices",
        r#"{"price":{"amount":"5","asset":"eip155:31337/erc20:0x1111111111111111111111111111111111111111","decimals":18}}"#,
    ),
    (
        "/v1/subscriptions/{subscription}",
        r#"{"cap":{"amount":"5","asset":"eip155:31337/erc20:0x1111111111111111111111111111111111111111","decimals":18}}"#,
    ),
    (
        "/contribution-terms",
        r#"{"reward_per_row":{"amount":"0","asset":"","decimals":18},"pool_ppm":0,"rows_max":1,"is_open":true}"#,
    ),
    (
        "/contributions",
        r#"{"version":"dsv_01h455vb4pex5vsknk084sn02q"}"#,
    ),
    ("/takedowns", r#"{"ground":"other","statement":"no"}"#),
    ("/contest", r#"{"statement":"no"}"#),
    ("/revoke", r#"{"reason":"no"}"#),
    (
        "/accept",
        r#"{"expected_reward":{"amount":"0","asset":"","decimals":18}}"#,
    ),
    ("/reject", r#"{"reason":"no"}"#),
    (
        "/files",
        r#"{"files":[{"path":"b","bytes":1,"sha256":"0000000000000000000000000000000000000000000000000000000000000000"}]}"#,
    ),
];

/// Operations that make the object which they name: whoever knows the bytes of a blob may store them too.
const MAKING: &[(&str, &str)] = &[("PUT", "/v1/blobs/{sha256}")];

/// Routes whose parameters name public things, the same for every tenant.
const SHARED: &[&str] = &[
    "/v1/batches/{id}",
    "/v1/batches/{id}/leaves",
    "/v1/links/{secret}",
    "/v1/prices/{id}",
];

struct Operation {
    method: Method,
    path: String,
    definition: Value,
}

impl Operation {
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    fn is_public(&self) -> bool {
        let method = self.method.as_str().to_lowercase();
        PUBLIC.contains(&(method.as_str(), self.path.as_str()))
    }

    /// Are its problems told as documents, whatever others read beside them?
    fn tells_documents(&self) -> bool {
        let dialect = comptoir_api::dialect_of(&self.method, &self.path);
        dialect.is_none_or(|it| it.is_beside)
    }

    /// Is it for administrators? Those have tests of their own, in `admin.rs`.
    fn is_admins(&self) -> bool {
        self.definition["security"][0]["admin"].is_array()
    }

    /// The scopes that an API key needs for it; `None` when the document names no API key.
    fn scopes(&self) -> Option<Vec<Scope>> {
        let alternatives = self.definition["security"].as_array()?;
        let scopes = alternatives
            .iter()
            .find_map(|one| one["api_key"].as_array())?;
        Some(
            scopes
                .iter()
                .map(|scope| scope.as_str().unwrap().parse().unwrap())
                .collect(),
        )
    }

    /// The path with its parameters replaced.
    fn url(&self, parameters: &[String]) -> String {
        let mut parameters = parameters.iter();
        let segments = self.path.split('/').map(|segment| {
            if segment.starts_with('{') {
                parameters.next().unwrap().clone()
            } else {
                segment.to_owned()
            }
        });
        segments.collect::<Vec<_>>().join("/")
    }

    async fn call(&self, app: &TestApp, parameters: &[String], caller: Option<&Session>) -> Reply {
        let call = app.request(self.method.clone(), &self.url(parameters));
        let call = if self.method == Method::GET {
            call
        } else {
            let body = BODIES.iter().find(|(end, _)| self.path.ends_with(end));
            call.json(&body.map_or(json!({}), |(_, body)| serde_json::from_str(body).unwrap()))
        };
        let call = call.idempotency_key("walk").header(header::IF_MATCH, "*");
        match caller {
            Some(caller) => call.by(caller).send().await,
            None => call.send().await,
        }
    }
}

fn operations(app: &TestApp) -> Vec<Operation> {
    let document = serde_json::to_value(&app.openapi).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let operations: Vec<_> = paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .iter()
                .map(|(method, definition)| Operation {
                    method: method.to_uppercase().parse().unwrap(),
                    path: path.clone(),
                    definition: definition.clone(),
                })
        })
        .collect();
    assert!(
        operations.len() > PUBLIC.len(),
        "the document lists the service"
    );
    operations
}

fn nobodys_parameters(operation: &Operation) -> Vec<String> {
    let count = operation.path.matches('{').count();
    vec!["nobodys".to_owned(); count]
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_operation_refuses_a_stranger(db: PgPool) {
    let app = TestApp::new(db).await;
    for operation in operations(&app) {
        let reply = operation
            .call(&app, &nobodys_parameters(&operation), None)
            .await;
        if operation.is_public() {
            assert_ne!(reply.code(), "unauthenticated", "{}", operation.name());
        } else {
            assert_eq!(
                reply.status,
                StatusCode::UNAUTHORIZED,
                "{}",
                operation.name()
            );
            assert_eq!(reply.code(), "unauthenticated", "{}", operation.name());
            assert_eq!(
                reply.header(header::WWW_AUTHENTICATE),
                "Bearer",
                "{}",
                operation.name()
            );
            let dialect = comptoir_api::dialect_of(&operation.method, &operation.path);
            let is_told = reply.json.get("error").is_some();
            assert_eq!(is_told, dialect.is_some(), "{}", operation.name());
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_operation_refuses_a_parameter_that_it_does_not_document(db: PgPool) {
    let app = TestApp::new(db).await;
    for operation in operations(&app) {
        let url = operation.url(&nobodys_parameters(&operation));
        let call = app.request(operation.method.clone(), &format!("{url}?surprise=1"));
        let reply = call.send().await;
        let name = operation.name();
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{name}");
        if operation.tells_documents() {
            assert_eq!(reply.text("/errors/0/pointer"), "?surprise", "{name}");
        }
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn every_operation_needs_the_scope_that_the_document_names(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    for operation in operations(&app)
        .iter()
        .filter(|operation| !operation.is_public() && !operation.is_admins())
    {
        let Some(needed) = operation.scopes() else {
            let any = app
                .api_key(&session, &Scope::ALL.iter().copied().collect())
                .await;
            let refused = operation
                .call(&app, &nobodys_parameters(operation), Some(&any))
                .await;
            let name = operation.name();
            assert_eq!(
                refused.code(),
                "session_required",
                "{name} names no API key"
            );
            continue;
        };
        let Some(needed) = needed.first() else {
            continue;
        };
        let others: Scopes = Scope::ALL
            .iter()
            .copied()
            .filter(|scope| scope != needed)
            .collect();
        let without = app.api_key(&session, &others).await;
        let with = app
            .api_key(&session, &[*needed].into_iter().collect())
            .await;

        let refused = operation
            .call(&app, &nobodys_parameters(operation), Some(&without))
            .await;
        assert_eq!(
            refused.code(),
            "insufficient_scope",
            "{} without {needed}",
            operation.name()
        );
        let allowed = operation
            .call(&app, &nobodys_parameters(operation), Some(&with))
            .await;
        assert_ne!(
            allowed.code(),
            "insufficient_scope",
            "{} with {needed}",
            operation.name()
        );
        assert_ne!(
            allowed.status,
            StatusCode::INTERNAL_SERVER_ERROR,
            "{}",
            operation.name()
        );
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn another_tenants_object_is_not_there(db: PgPool) {
    let app = TestApp::new(db).await;
    let (owner, _) = app.bound_session().await;
    let (stranger, _) = app.bound_session().await;
    let with_parameters = operations(&app)
        .into_iter()
        .filter(|operation| operation.path.contains('{') && !operation.is_admins())
        .filter(|it| !MAKING.contains(&(it.method.as_str(), it.path.as_str())));
    for operation in with_parameters.filter(|operation| !SHARED.contains(&operation.path.as_str()))
    {
        let (_, make) = OBJECTS
            .iter()
            .find(|(path, _)| operation.path.starts_with(path))
            .unwrap_or_else(|| panic!("OBJECTS has no line for {}", operation.name()));
        let parameters = make(&app, &owner).await;

        let theirs = operation.call(&app, &parameters, Some(&stranger)).await;
        assert_eq!(
            theirs.status,
            StatusCode::NOT_FOUND,
            "{} by a stranger: {:?}",
            operation.name(),
            theirs.json
        );
        let nobodys = operation
            .call(&app, &nobodys_parameters(&operation), Some(&stranger))
            .await;
        assert_eq!(
            without_request_id(theirs),
            without_request_id(nobodys),
            "{}",
            operation.name()
        );
        let own = operation.call(&app, &parameters, Some(&owner)).await;
        assert_ne!(
            own.status,
            StatusCode::NOT_FOUND,
            "{} by its owner: {:?}",
            operation.name(),
            own.json
        );
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn no_operation_fails_on_what_makes_no_sense(db: PgPool) {
    const BODIES: &[&str] = &[
        "",
        "null",
        "[]",
        "{",
        r#"{"a":1e999}"#,
        r#"{"a":"\ud800"}"#,
        r#"{"a":"\u0000"}"#,
        r#"{"id":{"id":{}}}"#,
        "\u{feff}{}",
    ];
    const PARAMETERS: &[&str] = &[
        "%20",
        "%F0%9F%92%A9",
        "'%20OR%201=1",
        "..%2f..",
        "00000000-0000-0000-0000-000000000000",
    ];
    const QUERIES: &[&str] = &[
        "?limit=99999999999999999999",
        "?cursor=AAAA",
        "?%ff=%fe",
        "?state=%27&limit=1",
    ];
    let app = TestApp::new(db).await;
    crate::accounts::register_asset(&app).await;
    let (session, _) = app.bound_session().await;
    for operation in operations(&app) {
        let count = operation.path.matches('{').count();
        let call = async |parameter: &str, query: &str, body: &'static str| {
            let url = format!(
                "{}{query}",
                operation.url(&vec![parameter.to_owned(); count])
            );
            let call = app
                .request(operation.method.clone(), &url)
                .by(&session)
                .idempotency_key("junk");
            let call = call
                .header(header::IF_MATCH, "junk")
                .header(header::CONTENT_TYPE, "application/json");
            let reply = call.body(body).send().await;
            let status = reply.status.as_u16();
            // Nobody hosts models here, and this operation says so.
            let may_fail = operation.path == "/v2/health/ready" && status == 503;
            assert!(
                status < 500 || may_fail,
                "{} {url} {body}: {:?}",
                operation.name(),
                reply.json
            );
        };
        for body in BODIES {
            call("x", "", body).await;
        }
        for parameter in PARAMETERS {
            call(parameter, "", "{}").await;
        }
        for query in QUERIES {
            call("x", query, "{}").await;
        }
    }
}

fn without_request_id(mut reply: Reply) -> Value {
    reply.json.as_object_mut().unwrap().remove("request_id");
    reply.json
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_document_says_what_clients_need(db: PgPool) {
    let app = TestApp::new(db).await;
    let document = serde_json::to_value(&app.openapi).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let tags: BTreeSet<_> = document["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| &tag["name"])
        .map(Value::as_str)
        .collect();
    let mut names = BTreeSet::new();
    for operation in operations(&app) {
        let name = operation.definition["operationId"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            names.insert(name.clone()),
            "{name} is the name of two operations"
        );
        assert!(
            operation.definition["summary"].is_string(),
            "{} has no summary",
            operation.name()
        );
        for (status, response) in operation.definition["responses"].as_object().unwrap() {
            let described = response["description"].is_string();
            assert!(described, "{} does not describe {status}", operation.name());
        }
        let tag = operation.definition["tags"][0].as_str();
        assert!(
            tags.contains(&tag),
            "{}: the tag {tag:?} is not described",
            operation.name()
        );
        if !operation.is_public() {
            let problem = &operation.definition["responses"]["4XX"]["content"];
            let kind = if operation.tells_documents() {
                "application/problem+json"
            } else {
                "application/json"
            };
            assert!(
                problem[kind].is_object(),
                "{} documents no problem",
                operation.name()
            );
        }
    }
}

#[test]
fn the_committed_document_is_the_one_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi/api.json");
    let actual = format!("{}\n", comptoir_api::openapi::committed());
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == actual,
        "openapi/api.json is out of date: `make generate` rewrites it"
    );
}

/// Each `Problem::new(StatusCode::X, "code", …)` of the services names a code that has a page, and no page is
/// of a code that nothing answers with.
#[test]
fn every_code_in_the_sources_has_a_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = Vec::new();
    for folder in ["api/src", "http/src", "scheduler/src"] {
        read_sources(&root.join(folder), &mut sources);
    }
    let used: BTreeSet<_> = sources
        .iter()
        .flat_map(|source| source.split("new(").skip(1))
        .filter_map(code_of_problem)
        .collect();
    assert!(used.len() > 10, "the scan finds the codes: {used:?}");
    for code in &used {
        assert!(
            codes::find(code).is_some(),
            "http/src/codes.rs has no line for `{code}`"
        );
    }
    for known in codes::ALL {
        let quoted = format!("\"{}\"", known.code);
        let used = sources.iter().any(|source| source.contains(&quoted));
        assert!(used, "nothing answers with `{}`", known.code);
    }
}

/// Every source below the folder, without the table of codes itself.
fn read_sources(folder: &Path, sources: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if !path.ends_with("http/src/codes.rs") {
            sources.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The code in the arguments of `Problem::new`, which begin with a status and a word in quotes.
fn code_of_problem(arguments: &str) -> Option<String> {
    let (status, rest) = arguments.trim_start().split_once(',')?;
    if !status.starts_with("StatusCode::") {
        return None;
    }
    let (code, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
    Some(code.to_owned())
}
