//! Plain HTTP on loopback: health, metrics, status. Shell.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use raft_store::plan::Health;
use tokio::net::TcpListener;

use crate::daemon::{Daemon, FleetView};
use crate::view::Scene;

/// Serves HTTP until dropped.
///
/// # Errors
/// When the listener fails.
pub async fn serve<D: Daemon>(daemon: Arc<D>, listener: TcpListener) -> std::io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz::<D>))
        .route("/metrics", get(metrics::<D>))
        .route("/v1/status", get(status::<D>))
        .with_state(daemon);
    axum::serve(listener, app).await
}

async fn readyz<D: Daemon>(State(daemon): State<Arc<D>>) -> impl IntoResponse {
    let view = daemon.view().await;
    let state = daemon.state();
    let why = if view.removed {
        Some("this node was removed from the fleet")
    } else if state.fleet.is_none() {
        Some("nothing has been replicated to this node yet")
    } else if view.leader.is_none() {
        Some("there is no leader")
    } else if daemon.fleet_key().is_none() {
        Some("the fleet's key has not been handed over yet")
    } else {
        None
    };
    match why {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn status<D: Daemon>(State(daemon): State<Arc<D>>) -> impl IntoResponse {
    let view = daemon.view().await;
    let Ok(read) = daemon.read(true).await else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            [(header::CONTENT_TYPE, "text/plain")],
            "no state\n".to_owned(),
        );
    };
    let (applied, now) = (read.applied, daemon.wall());
    let status = Scene { state: &read.state, view: &view, applied, now }.status(daemon.me());
    let mut value = serde_json::to_value(&status).unwrap_or_default();
    value["schema"] = 1.into();
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], format!("{value}\n"))
}

async fn metrics<D: Daemon>(State(daemon): State<Arc<D>>) -> impl IntoResponse {
    let view = daemon.view().await;
    let state = daemon.state();
    let applied = daemon.read(true).await.map_or(0, |r| r.applied);
    let mut text = String::new();
    let own = raft_metrics(&mut text, &view, applied, view.leader == Some(daemon.me()));
    own.and_then(|()| domain_metrics(&mut text, &state, &view)).unwrap_or_default();
    text.push_str(&daemon.metrics());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

fn gauge(out: &mut String, name: &str, help: &str) -> std::fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge")
}

fn raft_metrics(out: &mut String, view: &FleetView, applied: u64, leads: bool) -> std::fmt::Result {
    gauge(out, "skein_raft_term", "Raft's term.")?;
    writeln!(out, "skein_raft_term {}", view.term)?;
    gauge(out, "skein_raft_applied_index", "The log index that this node has applied.")?;
    writeln!(out, "skein_raft_applied_index {applied}")?;
    gauge(out, "skein_raft_leader", "1 on the leader.")?;
    writeln!(out, "skein_raft_leader {}", u8::from(leads))?;
    gauge(out, "skein_raft_quorum", "1 while a majority of the voters answers.")?;
    writeln!(out, "skein_raft_quorum {}", u8::from(view.quorum))
}

fn domain_metrics(
    out: &mut String,
    state: &raft_store::model::State,
    view: &FleetView,
) -> std::fmt::Result {
    gauge(out, "skein_node_up", "1 for nodes that the leader hears, 0 for lost ones.")?;
    for node in state.nodes.values() {
        let health = view.nodes.get(&node.id).map_or(Health::Unknown, |n| n.health);
        if health != Health::Unknown {
            writeln!(
                out,
                "skein_node_up{{node=\"{}\"}} {}",
                node.name,
                u8::from(health == Health::Live)
            )?;
        }
    }
    gauge(out, "skein_vip_generation", "How often a VIP has moved.")?;
    for vip in state.vips.values() {
        let holder = vip.holder.map(|h| state.name_of(h)).unwrap_or_default();
        writeln!(
            out,
            "skein_vip_generation{{vip=\"{}\",holder=\"{holder}\"}} {}",
            vip.name, vip.generation
        )?;
    }
    Ok(())
}
