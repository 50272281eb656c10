//! The rehearsal's server: K3s' files, then TLS on 6443 with the little of Kubernetes' API that is asked for. Shell.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::{Path as Segment, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Json};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::client::{Peer, kubeconfig, parse_token, registration};
use super::options::Options;
use super::pki::{Authority, token_hash};
use super::table::{Registration, Table};
use super::{SECOND, VERSION, log, notify_ready, write};

/// What the handlers share.
struct Shared {
    table: Mutex<Table>,
    client_ca: Authority,
    server_secret: String,
    agent_secret: String,
    ca: String,
    dir: std::path::PathBuf,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self) {
        let text = serde_json::to_string(&*self.table()).unwrap_or_default();
        if let Err(e) = write(&self.dir.join("server/rehearsal-nodes.json"), &text) {
            log(e);
        }
    }
}

/// Whether the caller showed a certificate of the client authority.
#[derive(Clone, Copy)]
struct Certified(bool);

fn secret() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .unwrap_or_default()
        .trim()
        .replace('-', "")
}

/// Runs a server until it is killed; it ends by itself if it cannot join, as K3s does.
pub(super) async fn run(options: &Options) -> Result<(), String> {
    let dir = options.data_dir();
    let tls = dir.join("server/tls");
    let joined = match options.get("server") {
        Some(url) if !dir.join("server/db/etcd").exists() => {
            Some(bootstrap(options, url, &tls).await?)
        }
        _ => None,
    };
    std::fs::create_dir_all(dir.join("server/db/etcd/member/wal")).map_err(|e| e.to_string())?;
    let server_ca = Authority::open(&tls, "server-ca")?;
    let client_ca = Authority::open(&tls, "client-ca")?;
    let (server_secret, agent_secret) = tokens(options, &dir, &server_ca.cert_pem)?;
    let mut sans: Vec<String> =
        ["127.0.0.1", "::1", "localhost", "kubernetes", "kubernetes.default.svc"]
            .map(str::to_owned)
            .into();
    sans.extend(["tls-san", "node-ip", "advertise-address"].iter().flat_map(|k| options.all(k)));
    let serving = server_ca.sign("k3s-rehearsal", "k3s", &sans)?;
    let admin = client_ca.sign("system:admin", "system:masters", &[])?;
    let own = kubeconfig("https://127.0.0.1:6443", &server_ca.cert_pem, &admin.0, &admin.1);
    write(Path::new("/etc/rancher/k3s/k3s.yaml"), &own)?;

    let mut table: Table = std::fs::read(dir.join("server/rehearsal-nodes.json"))
        .ok()
        .and_then(|b| serde_json::from_slice(&b).ok())
        .unwrap_or_default();
    table.merge(joined.unwrap_or_default());
    if table.cidrs.is_empty() {
        table.cidrs = options.all("cluster-cidr");
    }
    if table.cidrs.is_empty() {
        table.cidrs = vec!["10.42.0.0/16".into()];
    }
    table.register(&registration(options), VERSION);
    let ca = server_ca.cert_pem.clone();
    let shared = Arc::new(Shared {
        table: Mutex::new(table),
        client_ca,
        server_secret,
        agent_secret,
        ca,
        dir,
    });
    shared.save();
    let acceptor = acceptor(&serving, &shared.client_ca.cert_pem)?;
    let listener = TcpListener::bind("[::]:6443").await.map_err(|e| format!("port 6443: {e}"))?;
    log("server is up");
    notify_ready();
    let me = options.node_name();
    tokio::select! {
        biased;
        () = accept(listener, acceptor, router(shared.clone())) => Ok(()),
        () = copy(shared, me) => Ok(()),
    }
}

/// Fetches what a joining server needs from one that is there.
async fn bootstrap(options: &Options, url: &str, tls: &Path) -> Result<Table, String> {
    let token = options.get("token").ok_or("--token is required")?;
    let peer = Peer::open(url, token).await?;
    let answer = peer.post("/v1-rehearsal/bootstrap", &json!({})).await?;
    for (name, text) in answer["tls"].as_object().into_iter().flatten() {
        write(&tls.join(name), text.as_str().unwrap_or_default())?;
    }
    serde_json::from_value(answer["table"].clone()).map_err(|e| e.to_string())
}

fn tokens(options: &Options, dir: &Path, ca: &str) -> Result<(String, String), String> {
    let path = dir.join("server/token");
    let known = std::fs::read_to_string(&path).ok().map(|t| parse_token(t.trim()).secret);
    let given = options.get("token").map(|t| parse_token(t).secret);
    let server = known.or(given).unwrap_or_else(secret);
    let agent = options.get("agent-token").map_or_else(|| server.clone(), str::to_owned);
    let hash = token_hash(ca);
    write(&path, &format!("K10{hash}::server:{server}\n"))?;
    write(&dir.join("server/agent-token"), &format!("K10{hash}::node:{agent}\n"))?;
    let link = dir.join("server/node-token");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&path, &link).map_err(|e| e.to_string())?;
    Ok((server, agent))
}

fn acceptor(serving: &(String, String), client_ca: &str) -> Result<TlsAcceptor, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("TLS: {e}");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(client_ca.as_bytes()) {
        roots.add(cert.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    }
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()
    .map_err(|e| wrong(&e))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(serving.0.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(serving.1.as_bytes()).map_err(|e| wrong(&e))?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.map_err(|e| wrong(&e))?, key)
        .map_err(|e| wrong(&e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((tcp, _)) = listener.accept().await else {
            continue;
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else {
                return;
            };
            let certified = Certified(stream.get_ref().1.peer_certificates().is_some());
            let service = TowerToHyperService::new(router.layer(Extension(certified)));
            // A connection that breaks is the client's business.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Copies the table from the other servers, for ever.
async fn copy(shared: Arc<Shared>, me: String) {
    let token = format!("K10{}::server:{}", token_hash(&shared.ca), shared.server_secret);
    loop {
        let others = shared.table().servers(&me);
        for address in others {
            let host = if address.contains(':') { format!("[{address}]") } else { address };
            let Ok(peer) = Peer::open(&format!("https://{host}:6443"), &token).await else {
                continue;
            };
            let mine = json!(*shared.table());
            if let Ok(answer) = peer.post("/v1-rehearsal/table", &mine).await
                && let Ok(theirs) = serde_json::from_value::<Table>(answer)
            {
                let news = shared.table().merge(theirs);
                if news {
                    shared.save();
                }
            }
        }
        sleep(SECOND / 2).await;
    }
}

type App = State<Arc<Shared>>;

fn router(shared: Arc<Shared>) -> Router {
    let api = Router::new()
        .route("/readyz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/version", get(|| async { Json(json!({"major": "1", "minor": "34", "gitVersion": VERSION})) }))
        .route("/api/v1/nodes", get(list))
        .route("/api/v1/nodes/{name}", any(node))
        .route("/api/v1/pods", get(|| async { Json(json!({"kind": "PodList", "apiVersion": "v1", "items": []})) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, Json(json!({"kind": "Status", "code": 404, "message": "the rehearsal has no such thing"}))) })
        .layer(from_fn_with_state(shared.clone(), only_certified));
    Router::new()
        .route("/ping", get(|| async { "pong" }))
        .route("/cacerts", get(|State(s): App| async move { s.ca.clone() }))
        .route("/v1-rehearsal/register", post(register))
        .route("/v1-rehearsal/bootstrap", post(give_bootstrap))
        .route("/v1-rehearsal/table", post(exchange))
        .merge(api)
        .with_state(shared)
}

async fn only_certified(
    State(_): App,
    Extension(who): Extension<Certified>,
    request: Request,
    next: Next,
) -> Response {
    if who.0 {
        return next.run(request).await;
    }
    (
        StatusCode::UNAUTHORIZED,
        Json(json!({"kind": "Status", "code": 401, "message": "Unauthorized"})),
    )
        .into_response()
}

/// Reads `Authorization: Basic` and compares it with a secret.
fn has_secret(headers: &HeaderMap, secrets: &[&str]) -> bool {
    use base64::Engine as _;
    let sent = headers.get("authorization").and_then(|v| v.to_str().ok()?.strip_prefix("Basic "));
    let decoded = sent.and_then(|s| base64::engine::general_purpose::STANDARD.decode(s).ok());
    let text = decoded.and_then(|b| String::from_utf8(b).ok()).unwrap_or_default();
    text.split_once(':').is_some_and(|(_, secret)| secrets.contains(&secret))
}

async fn register(State(s): App, headers: HeaderMap, Json(r): Json<Registration>) -> Response {
    if !has_secret(&headers, &[&s.server_secret, &s.agent_secret]) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let known = s.table().get(&r.name).is_some();
    if !known {
        s.table().register(&r, VERSION);
        s.save();
    }
    match s.client_ca.sign(&format!("system:node:{}", r.name), "system:nodes", &[]) {
        Ok((cert, key)) => Json(json!({"cert": cert, "key": key})).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e).into_response(),
    }
}

async fn give_bootstrap(State(s): App, headers: HeaderMap) -> Response {
    if !has_secret(&headers, &[&s.server_secret]) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let tls = s.dir.join("server/tls");
    let mut files = serde_json::Map::new();
    for name in ["server-ca.crt", "server-ca.key", "client-ca.crt", "client-ca.key"] {
        let text = std::fs::read_to_string(tls.join(name)).unwrap_or_default();
        files.insert(name.into(), text.into());
    }
    let table = json!(*s.table());
    Json(json!({"tls": files, "table": table})).into_response()
}

async fn exchange(State(s): App, headers: HeaderMap, Json(theirs): Json<Table>) -> Response {
    if !has_secret(&headers, &[&s.server_secret]) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let news = s.table().merge(theirs);
    if news {
        s.save();
    }
    let mine = json!(*s.table());
    Json(mine).into_response()
}

async fn list(State(s): App) -> Json<Value> {
    Json(json!({"kind": "NodeList", "apiVersion": "v1", "items": s.table().list()}))
}

async fn node(State(s): App, Segment(name): Segment<String>, request: Request) -> Response {
    let method = request.method().as_str().to_owned();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap_or_default();
    let missing = || {
        (
            StatusCode::NOT_FOUND,
            Json(json!({"kind": "Status", "code": 404, "message": "no such node"})),
        )
            .into_response()
    };
    let answer = match method.as_str() {
        "GET" => s.table().get(&name).cloned(),
        "PATCH" => {
            let patch: Value = serde_json::from_slice(&body).unwrap_or_default();
            s.table().patch(&name, &patch)
        }
        "DELETE" => s.table().delete(&name).then(|| json!({"kind": "Status", "status": "Success"})),
        _ => return StatusCode::METHOD_NOT_ALLOWED.into_response(),
    };
    if method != "GET" {
        s.save();
    }
    answer.map_or_else(missing, |v| Json(v).into_response())
}
