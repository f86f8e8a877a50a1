//! The catalogue of bad input: what is sent, and with what it may be refused. The tests beside it send every case to every
//! route that could take it, those that are added later too.

/// Statuses that a case may be answered with; what it asks for comes first.
pub type Refusals = &'static [u16];

const MALFORMED: Refusals = &[400];
const INVALID: Refusals = &[422];
/// Routes that take more read it to its end.
const TOO_LARGE: Refusals = &[413, 400];
const EITHER: Refusals = &[400, 422];

/// A body that no operation takes.
pub struct Body {
    pub name: &'static str,
    pub bytes: fn() -> Vec<u8>,
    pub refused: Refusals,
}

const fn body(name: &'static str, bytes: fn() -> Vec<u8>, refused: Refusals) -> Body {
    Body {
        name,
        bytes,
        refused,
    }
}

/// Bodies of application/json.
pub const BODIES: &[Body] = &[
    body("no bytes", Vec::new, MALFORMED),
    body("one byte", || b"{".to_vec(), MALFORMED),
    body("blank up to the limit", || vec![b' '; 1 << 20], MALFORMED),
    body(
        "blank beyond the limit",
        || vec![b' '; (1 << 20) + 1],
        TOO_LARGE,
    ),
    body("not UTF-8", || b"{\"a\":\"\xff\"}".to_vec(), EITHER),
    body("latin-1", || b"{\"name\":\"caf\xe9\"}".to_vec(), EITHER),
    body(
        "a byte order mark",
        || b"\xef\xbb\xbf{}".to_vec(),
        MALFORMED,
    ),
    body("a bare NUL", || b"{\"a\":\"\0\"}".to_vec(), EITHER),
    body("an escaped NUL", || br#"{"a":"\u0000"}"#.to_vec(), INVALID),
    body(
        "an escaped NUL in a name",
        || br#"{"\u0000":1}"#.to_vec(),
        INVALID,
    ),
    body(
        "half a surrogate pair",
        || br#"{"a":"\ud800"}"#.to_vec(),
        EITHER,
    ),
    body(
        "a number beyond every float",
        || br#"{"a":1e400}"#.to_vec(),
        EITHER,
    ),
    body("not a number", || br#"{"a":NaN}"#.to_vec(), EITHER),
    body("minus nought", || br#"{"a":-0}"#.to_vec(), INVALID),
    body(
        "a deep array",
        || [vec![b'['; 100_000], vec![b']'; 100_000]].concat(),
        EITHER,
    ),
    body(
        "a deep field",
        || {
            [
                b"{\"a\":".to_vec(),
                vec![b'['; 200],
                vec![b']'; 200],
                b"}".to_vec(),
            ]
            .concat()
        },
        EITHER,
    ),
    body(
        "a deep object",
        || {
            let (open, close) = ("{\"a\":".repeat(10_000), "}".repeat(10_000));
            format!("{open}1{close}").into_bytes()
        },
        EITHER,
    ),
    body(
        "a long array",
        || format!("[{}0]", "0,".repeat(400_000)).into_bytes(),
        INVALID,
    ),
    body(
        "many fields",
        || {
            let fields: Vec<_> = (0..10_000).map(|n| format!("\"f{n}\":{n}")).collect();
            format!("{{{}}}", fields.join(",")).into_bytes()
        },
        INVALID,
    ),
    body(
        "a long name",
        || format!("{{\"{}\":1}}", "a".repeat(1_000_000)).into_bytes(),
        INVALID,
    ),
    body("null", || b"null".to_vec(), INVALID),
    body("true", || b"true".to_vec(), INVALID),
    body("a number", || b"7".to_vec(), INVALID),
    body("a text", || b"\"text\"".to_vec(), INVALID),
    body(
        "a prototype",
        || br#"{"__proto__":{"role":"admin"}}"#.to_vec(),
        INVALID,
    ),
    body(
        "a role that nobody gives oneself",
        || br#"{"roles":["platform"],"role":"admin"}"#.to_vec(),
        INVALID,
    ),
    body("a form", || b"a=1&b=2".to_vec(), MALFORMED),
    body("XML", || b"<?xml version=\"1.0\"?><a/>".to_vec(), MALFORMED),
];

/// Content types that are not JSON in UTF-8, alone or together.
pub const CONTENT_TYPES: &[&[&str]] = &[
    &[],
    &[""],
    &["text/plain"],
    &["application/json; charset=latin-1"],
    &["application/json", "application/json"],
    &["application/json", "text/plain"],
    &["application/x-www-form-urlencoded"],
    &["multipart/form-data"],
    &["application/jsonp"],
];

/// What cannot be an identifier, a digest or a number in a path. Percent-encoded as it is sent.
pub const PATH_PARAMETERS: &[&str] = &[
    "%00",
    "%20",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "%ff",
    "%F0%9F%92%A9",
    "'%20OR%201=1--",
    "00000000-0000-0000-0000-000000000000",
    "%7B00000000-0000-0000-0000-000000000000%7D",
    "job_00000000000000000000000000",
    "JOB_01H455VB4PEX5VSKNK084SN02Q",
    "job_01h455vb4pex5vsknk084sn02",
    "-1",
    "99999999999999999999999999",
    "null",
];

/// Queries that no list takes.
pub const QUERIES: &[&str] = &[
    "limit=0",
    "limit=-1",
    "limit=101",
    "limit=1000000000",
    "limit=1.5",
    "limit=",
    "limit=1&limit=2",
    "limit=%00",
    "cursor=",
    "cursor=AAAA",
    "cursor=%ff",
    "cursor=..%2f",
    "order=password_hash",
    "sort=-created_at",
    "state=%27%20OR%201%3D1",
    "state=%25",
    "state=_",
    "filter[account_id]=1",
    "account_id=acct_01h455vb4pex5vsknk084sn02q",
    "created_after=yesterday",
    "created_after=9999-99-99T00:00:00Z",
    "include=password_hash",
    "__proto__=1",
];

/// What is no `Idempotency-Key`, alone or together.
pub const IDEMPOTENCY_KEYS: &[&[&str]] = &[
    &[],
    &[""],
    &["one", "two"],
    &["\u{e9}"],
    &["a\tb"],
    &[concat!(
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    )],
];

/// What is no amount in base units.
pub const AMOUNTS: &[&str] = &[
    r#""""#,
    r#"" 1""#,
    r#""1 ""#,
    r#""+1""#,
    r#""-1""#,
    r#""0""#,
    r#""00""#,
    r#""01""#,
    r#""1.0""#,
    r#""1e18""#,
    r#""0x10""#,
    r#""1_000""#,
    r#""1,000""#,
    "\"\u{661}\u{662}\"",
    r#""9999999999999999999999999999999999999999999999999999999999999999999999999999999""#,
    r#""115792089237316195423570985008687907853269984665640564039457584007913129639935""#,
    r#""115792089237316195423570985008687907853269984665640564039457584007913129639936""#,
    r#""340282366920938463463374607431768211456""#,
    "1",
    "1.5",
    "1e3",
    "-1",
    "9007199254740993",
    "true",
    "null",
    "[]",
    "{}",
];

/// What is no address of an account.
pub const ADDRESSES: &[&str] = &[
    "",
    "0x",
    "0X5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAe",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAedd",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD",
    "0x5AAEB6053F3E94C9B9A09F33669435E7EF1BEAED",
    "0x0000000000000000000000000000000000000000",
    "0x0000000000000000000000000000000000000001",
    "0x0000000000000000000000000000000000000100",
    "0xgggggggggggggggggggggggggggggggggggggggg",
    "vitalik.eth",
    "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
];

/// Values that no field takes whose own value is a text or a number, in JSON.
pub const NO_SCALARS: &[&str] = &["{}", "[]", "[1]", r#"{"a":1}"#, "false"];

/// Numbers at the ends of what numbers can be, in JSON.
pub const NUMBERS: &[&str] = &[
    "-1",
    "0",
    "-0.0",
    "0.5",
    "1e-320",
    "1e308",
    "65537",
    "4294967295",
    "4294967296",
    "9007199254740991",
    "9007199254740992",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775809",
];

/// What is no deadline of a job, in JSON.
pub const MOMENTS: &[&str] = &[
    r#""""#,
    r#""yesterday""#,
    r#""2001-01-01T00:00:00Z""#,
    r#""9999-12-31T23:59:59Z""#,
    r#""10000-01-01T00:00:00Z""#,
    r#""9999-12-31T23:59:59-23:59""#,
    r#""0000-01-01T00:00:00+23:59""#,
    r#""2026-13-01T00:00:00Z""#,
    r#""2026-02-30T00:00:00Z""#,
    r#""2026-11-22T24:61:00Z""#,
    r#""2026-11-22""#,
    r#""2026-11-22T00:00:00""#,
    "1800000000",
    "0",
    "-1",
    "{}",
];

/// Headers that say who calls, and do not: each alone.
pub const AUTHORIZATIONS: &[&[&str]] = &[
    &[""],
    &["Bearer"],
    &["Bearer "],
    &["Bearer  "],
    &["Basic dXNlcjpwYXNz"],
    &["bearer null"],
    &["Bearer undefined"],
    &["Bearer x.y.z"],
    &["Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0."],
    &["Bearer ck_test_"],
    &["Bearer ck_test_00000000000000000000000000000000000"],
    &["Bearer ck_live_000000000000000000000000000000000000"],
    &["Bearer crt_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"],
    &["Bearer cwj_0"],
    &["Bearer ../../etc/passwd"],
    &["Bearer ' OR 1=1"],
];
