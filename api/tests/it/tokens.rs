//! Access tokens that are not exactly ours, one by one (RFC 8725), and what rotating the keys changes.

use axum::http::StatusCode;
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD},
};
use comptoir_domain::id::{AccountId, SessionId, WorkerId};
use comptoir_http::{
    jwt::SigningKey,
    key_ring::{KeyFile, TokenKeys},
};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use sqlx::PgPool;
use time::Duration;

use crate::harness::{NOW, ORIGIN, Reply, Session, TestApp};

async fn show(app: &TestApp, token: &str) -> Reply {
    let nobody = Session {
        account: AccountId::generate(),
        token: token.to_owned(),
        id: SessionId::generate(),
    };
    app.get("/v1/account").by(&nobody).send().await
}

/// What tokens are forged from.
struct Forge {
    key: EncodingKey,
    public: [u8; 32],
    header: String,
    claims: Value,
}

impl Forge {
    fn new(app: &TestApp, session: &Session) -> Self {
        let base64: String = app
            .signing_pem
            .lines()
            .filter(|line| !line.starts_with('-'))
            .collect();
        let der = BASE64_STANDARD.decode(base64).unwrap();
        let kid = jsonwebtoken::decode_header(&session.token)
            .unwrap()
            .kid
            .unwrap();
        let now = NOW.unix_timestamp();
        Self {
            key: EncodingKey::from_ed_der(&der),
            public: SigningKey::from_pem(&app.signing_pem).unwrap().public(),
            header: json!({ "typ": "comptoir-api+jwt", "alg": "EdDSA", "kid": kid }).to_string(),
            claims: json!({
                "iss": ORIGIN, "aud": "comptoir-api", "sub": session.account.to_string(),
                "sid": session.id.to_string(), "jti": "1", "iat": now, "nbf": now, "exp": now + 900,
            }),
        }
    }

    /// Signed by our key, whatever the parts say.
    fn sign(&self, header: &str, claims: &str) -> String {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", part(header), part(claims));
        let signature =
            jsonwebtoken::crypto::sign(signed.as_bytes(), &self.key, Algorithm::EdDSA).unwrap();
        format!("{signed}.{signature}")
    }

    fn with_header(&self, name: &str, value: Value) -> String {
        let mut header: Value = serde_json::from_str(&self.header).unwrap();
        header[name] = value;
        self.sign(&header.to_string(), &self.claims.to_string())
    }

    fn with_claim(&self, name: &str, value: Value) -> String {
        let mut claims = self.claims.clone();
        claims[name] = value;
        self.sign(&self.header, &claims.to_string())
    }

    fn without(&self, name: &str) -> String {
        let mut claims = self.claims.clone();
        claims.as_object_mut().unwrap().remove(name);
        self.sign(&self.header, &claims.to_string())
    }

    /// HMAC with the public key as the secret: what a verifier that trusts `alg` would believe.
    fn confused(&self, header: &str) -> String {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", part(header), part(&self.claims.to_string()));
        let secret = EncodingKey::from_secret(&self.public);
        let signature =
            jsonwebtoken::crypto::sign(signed.as_bytes(), &secret, Algorithm::HS256).unwrap();
        format!("{signed}.{signature}")
    }

    fn algorithms(&self) -> Vec<(&'static str, String)> {
        let unsigned = |alg: &str| {
            let header = self.header.replace("EdDSA", alg);
            let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
            format!("{}.{}.", part(&header), part(&self.claims.to_string()))
        };
        vec![
            ("alg none, unsigned", unsigned("none")),
            ("alg None, unsigned", unsigned("None")),
            ("alg EdDSA, unsigned", unsigned("EdDSA")),
            ("alg none, signed", self.with_header("alg", json!("none"))),
            ("alg NONE, signed", self.with_header("alg", json!("NONE"))),
            ("alg null", self.with_header("alg", Value::Null)),
            ("alg ES256", self.with_header("alg", json!("ES256"))),
            (
                "HS256 with the public key",
                self.confused(&self.header.replace("EdDSA", "HS256")),
            ),
            (
                "EdDSA said, HS256 done with the public key",
                self.confused(&self.header),
            ),
        ]
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        let kid_twice = self.header.replace('{', r#"{"kid":"unknown","#);
        let kid_twice_the_same = self.header.replace(
            '}',
            &format!(
                r#","kid":{}}}"#,
                serde_json::from_str::<Value>(&self.header).unwrap()["kid"]
            ),
        );
        let claims = self.claims.to_string();
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64_URL_SAFE_NO_PAD.encode(self.public) });
        let mut headers = vec![
            ("kid twice", self.sign(&kid_twice, &claims)),
            (
                "kid twice, the same",
                self.sign(&kid_twice_the_same, &claims),
            ),
            ("a header that is a list", self.sign("[]", &claims)),
            ("no header", self.sign("", &claims)),
        ];
        for (what, name, value) in [
            ("kid unknown", "kid", json!("unknown")),
            ("kid of a path", "kid", json!("../../jwt.pem")),
            ("kid of SQL", "kid", json!("' OR '1'='1")),
            ("kid empty", "kid", json!("")),
            ("kid null", "kid", Value::Null),
            ("jku", "jku", json!("https://elsewhere.test/jwks.json")),
            ("x5u", "x5u", json!("https://elsewhere.test/cert.pem")),
            ("x5c", "x5c", json!(["AAAA"])),
            ("jwk", "jwk", jwk),
            ("crit", "crit", json!(["b64"])),
            ("b64", "b64", json!(false)),
            ("zip", "zip", json!("DEF")),
            ("nested", "cty", json!("JWT")),
            ("typ of any token", "typ", json!("JWT")),
            ("typ of a worker's", "typ", json!("comptoir-worker+jwt")),
            ("typ null", "typ", Value::Null),
        ] {
            headers.push((what, self.with_header(name, value)));
        }
        headers
    }

    fn claims(&self) -> Vec<(&'static str, String)> {
        let now = NOW.unix_timestamp();
        let mut claims: Vec<_> = ["iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp"]
            .into_iter()
            .map(|name| (name, self.without(name)))
            .collect();
        let twice =
            self.claims
                .to_string()
                .replacen('{', &format!(r#"{{"exp":{},"#, now + 9000), 1);
        claims.push(("exp twice", self.sign(&self.header, &twice)));
        for (what, name, value) in [
            ("iss elsewhere", "iss", json!("https://elsewhere.test")),
            (
                "iss and another",
                "iss",
                json!([ORIGIN, "https://elsewhere.test"]),
            ),
            ("aud of workers", "aud", json!("comptoir-worker")),
            (
                "aud and another",
                "aud",
                json!(["comptoir-api", "comptoir-worker"]),
            ),
            (
                "sub a worker",
                "sub",
                json!(WorkerId::generate().to_string()),
            ),
            (
                "sub somebody else",
                "sub",
                json!(AccountId::generate().to_string()),
            ),
            (
                "sid nobody's",
                "sid",
                json!(SessionId::generate().to_string()),
            ),
            ("sid no session", "sid", json!("1")),
            ("exp at the edge", "exp", json!(now - 5)),
            ("exp as text", "exp", json!((now + 900).to_string())),
            ("exp with a point", "exp", json!(1e10)),
            ("exp null", "exp", Value::Null),
            ("exp beyond numbers", "exp", json!(u64::MAX)),
            ("nbf past the edge", "nbf", json!(now + 6)),
            ("nbf as text", "nbf", json!(now.to_string())),
            ("nbf null", "nbf", Value::Null),
        ] {
            claims.push((what, self.with_claim(name, value)));
        }
        claims
    }

    fn texts(&self) -> Vec<(&'static str, String)> {
        let good = self.sign(&self.header, &self.claims.to_string());
        let padded: Vec<String> = good
            .split('.')
            .map(|part| BASE64_URL_SAFE.encode(BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()))
            .collect();
        let parts: Vec<&str> = good.split('.').collect();
        let other = SigningKey::from_pem(&SigningKey::generate_pem()).unwrap();
        let elsewhere = TokenKeys::new(
            comptoir_http::key_ring::KeyRing::of(other),
            ORIGIN,
            "comptoir-api",
        );
        let (sub, sid) = (&self.claims["sub"], &self.claims["sid"]);
        let elsewhere =
            elsewhere.sign(sub.as_str().unwrap(), sid.as_str(), NOW, Duration::hours(1));
        assert!(padded[2].ends_with('='), "the padding shows: {}", padded[2]);
        vec![
            ("padded", padded.join(".")),
            (
                "a padded signature",
                format!("{}.{}.{}", parts[0], parts[1], padded[2]),
            ),
            ("a trailing bit", flip_last_bits(&good)),
            ("no signature", format!("{}.{}", parts[0], parts[1])),
            ("five parts", format!("{good}.x.y")),
            ("a token in a token", format!("{good}.{good}")),
            ("another key", elsewhere),
            ("a megabyte", "a".repeat(1 << 20)),
            (
                "a megabyte of claims",
                self.with_claim("pad", json!("a".repeat(1 << 20))),
            ),
            ("lower case", good.to_lowercase()),
            ("dots", "..".to_owned()),
        ]
    }
}

/// The signature's last character carries four bits that mean nothing; another text, the same bytes.
fn flip_last_bits(token: &str) -> String {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = token.split_at(token.len() - 1);
    let place = DIGITS.find(last).unwrap();
    format!("{rest}{}", &DIGITS[place + 1..place + 2])
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn only_a_token_exactly_like_ours_is_believed(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let forge = Forge::new(&app, &session);
    let good = forge.sign(&forge.header, &forge.claims.to_string());
    show(&app, &good).await.expect(StatusCode::OK);
    let now = NOW.unix_timestamp();
    for (name, edge) in [("exp", now - 4), ("nbf", now + 5)] {
        let token = forge.with_claim(name, json!(edge));
        show(&app, &token).await.expect(StatusCode::OK);
    }
    let refused = [
        forge.algorithms(),
        forge.headers(),
        forge.claims(),
        forge.texts(),
    ];
    for (what, token) in refused.into_iter().flatten() {
        let reply = show(&app, &token).await;
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::UNAUTHORIZED, "unauthenticated"),
            "{what}"
        );
    }
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_rotation_ends_the_tokens_of_two_keys_ago_alone(db: PgPool) {
    let app = TestApp::new(db).await;
    let session = app.session().await;
    let published = async || {
        let reply = app.get("/.well-known/jwks.json").send().await;
        let keys = reply.json["keys"].as_array().unwrap().clone();
        keys.iter()
            .map(|key| key["kid"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let kid = |session: &Session| {
        jsonwebtoken::decode_header(&session.token)
            .unwrap()
            .kid
            .unwrap()
    };
    let mut file = KeyFile::parse(&app.signing_pem).unwrap();
    file.prepare();
    app.state.keys.replace(file.ring().unwrap());
    let [first, second] = published().await.try_into().unwrap();
    assert_eq!(kid(&session), first);

    let file = file.rotated(app.now()).unwrap().unwrap();
    app.state.keys.replace(file.ring().unwrap());
    let later = app.renewed(&session);
    assert_eq!(
        kid(&later),
        second,
        "the next key was published before it signed"
    );
    let [current, next, before] = published().await.try_into().unwrap();
    assert_eq!((&current, &before), (&second, &first));
    for token in [&session.token, &later.token] {
        show(&app, token).await.expect(StatusCode::OK);
    }

    let file = file.rotated(app.now()).unwrap().unwrap();
    app.state.keys.replace(file.ring().unwrap());
    assert_eq!(published().await[0], next);
    show(&app, &later.token).await.expect(StatusCode::OK);
    show(&app, &session.token)
        .await
        .expect_problem(StatusCode::UNAUTHORIZED, "unauthenticated");
}
