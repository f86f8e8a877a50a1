//! The OpenAPI document: made from the routes, committed, and served as it is committed.

use comptoir_domain::webhook::EventType;
use comptoir_http::{credential::SESSION_COOKIE, openapi::operations};
use utoipa::{
    Modify, OpenApi as _,
    openapi::{
        Content, Object, OpenApi, PathItem, Paths, PathsBuilder, Ref, RefOr, Required,
        ResponseBuilder, Type,
        path::{HttpMethod, Operation, OperationBuilder, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        security::{
            ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
        },
    },
};

use crate::webhooks::body::Message;

/// Who signed in may do everything.
const NO_SCOPES: [&str; 0] = [];

/// What the document says beside the routes.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Comptoir",
        description = "AI compute, bought and sold for an ERC-20 token; every charge has a receipt that anyone can check \
                       against the chain.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This service")),
    modifiers(&Security),
    components(schemas(Message)),
    tags(
        (name = "auth", description = "Sign in, stay signed in, sign out"),
        (name = "accounts", description = "The account and its on-chain address"),
        (name = "keys", description = "API keys with scopes"),
        (name = "blobs", description = "Files by the digest of their bytes: programs, data, results"),
        (name = "jobs", description = "Prices, jobs, their events and results"),
        (name = "datasets", description = "Datasets: cards, versions, their files, and downloads"),
        (name = "market", description = "Offers of datasets, purchases, subscriptions and sales"),
        (name = "models", description = "Models, their versions and prices"),
        (name = "calls", description = "Calls of models, and what they cost"),
        (name = "openai", description = "Models in the words of OpenAI's clients: embeddings"),
        (name = "inference-protocol", description = "Calls of models by the Open Inference Protocol"),
        (name = "contributions", description = "What others add to a dataset, for a reward and a share of its sales"),
        (name = "takedowns", description = "Datasets that somebody says must not be here, and what their sellers say to that"),
        (name = "workers", description = "Your own workers, and tokens that join new ones"),
        (name = "money", description = "Balance, statement, prices and withdrawals"),
        (name = "settlement", description = "Receipts, batches and their leaves, and what can be claimed on-chain"),
        (name = "webhooks", description = "Being told what happens, and what happened"),
        (name = "service", description = "How the service is"),
        (name = "admin", description = "What operators do; every action is in the audit log"),
    ),
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut OpenApi) {
        let bearer = |format: &str, description: &str| {
            SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .bearer_format(format)
                    .description(Some(description))
                    .build(),
            )
        };
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(
            "session",
            bearer(
                "JWT",
                "An access token from POST /v1/auth/token: 15 minutes, every scope.",
            ),
        );
        components.add_security_scheme(
            "admin",
            bearer(
                "JWT",
                "An access token of an administrator who signed in by password; to act, in the last 15 minutes.",
            ),
        );
        components.add_security_scheme(
            "cookie",
            SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::with_description(
                SESSION_COOKIE,
                "A browser's session, from POST /v1/auth/siwe or /v1/auth/token with `session: cookie`. What changes \
                 something needs the Origin of this service too.",
            ))),
        );
        components.add_security_scheme(
            "api_key",
            bearer(
                "API key",
                "A key from POST /v1/keys; it needs the scopes that the operation names.",
            ),
        );
    }
}

/// A browser's cookie is as good as an access token wherever one is.
pub(crate) fn with_cookies(mut document: OpenApi) -> OpenApi {
    let operations = document.paths.paths.values_mut().flat_map(operations);
    let session = SecurityRequirement::new("session", NO_SCOPES);
    for security in operations.filter_map(|it| it.security.as_mut()) {
        if security.contains(&session) {
            security.push(SecurityRequirement::new("cookie", NO_SCOPES));
        }
    }
    document
}

/// What every operation of administrators says, and none of them has to: who may, and that it may be refused.
pub(crate) fn of_admins(document: &mut OpenApi) {
    let problem = Content::new(Some(Ref::from_schema_name("Problem")));
    let refusal = ResponseBuilder::new().content("application/problem+json", problem);
    let refusal = RefOr::T(refusal.build());
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        operation.tags = Some(vec!["admin".to_owned()]);
        operation
            .security
            .get_or_insert_with(|| vec![SecurityRequirement::new("admin", NO_SCOPES)]);
        let responses = &mut operation.responses.responses;
        responses.insert("4XX".to_owned(), refusal.clone());
    }
}

/// What routes are added to.
pub(crate) fn base() -> OpenApi {
    let mut document = Document::openapi();
    document.webhooks = Some(webhooks());
    document
}

/// What is sent to webhook endpoints, by type of event.
fn webhooks() -> Paths {
    let types = EventType::ALL.iter();
    let all = types.fold(PathsBuilder::new(), |all, kind| {
        let receiving = PathItem::new(HttpMethod::Post, webhook(*kind));
        all.path(kind.as_str(), receiving)
    });
    all.build()
}

fn webhook(kind: EventType) -> Operation {
    let header = |name: &str, description: &str| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .required(Required::True)
            .schema(Some(Object::with_type(Type::String)))
            .description(Some(description))
            .build()
    };
    let message = Content::new(Some(Ref::from_schema_name("WebhookMessage")));
    let body = RequestBodyBuilder::new()
        .content("application/json", message)
        .required(Some(Required::True))
        .build();
    let taken = ResponseBuilder::new().description("Any 2xx within 20 seconds: it is taken");
    let gone = ResponseBuilder::new().description("The endpoint is disabled");
    OperationBuilder::new()
        .summary(Some(kind.meaning()))
        .tag("webhooks")
        .parameter(header("webhook-id", "The event; the same at each attempt"))
        .parameter(header("webhook-timestamp", "When it was sent, in seconds of Unix time"))
        .parameter(header(
            "webhook-signature",
            "`v1,` and the HMAC-SHA256 of `id.timestamp.body` in base64; with a space between, one for each secret that holds",
        ))
        .request_body(Some(body))
        .response("2XX", taken)
        .response("410", gone)
        .build()
}

/// The document of every route, as it is committed in `openapi/api.json` (which ends with an end of line).
#[must_use]
pub fn committed() -> String {
    let (_, openapi) = crate::routes::documented();
    openapi.to_pretty_json().expect("a document serialises")
}
