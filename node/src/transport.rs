//! Raft's transport over the wire: ids become identities and addresses here. Shell.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use raft_store::raft::{Frame, Transport, TransportError};

use crate::env::Wire;
use crate::whereabouts::Book;

/// The book of addresses, shared by those who call; held only for look-ups.
#[derive(Clone, Debug)]
pub struct SharedBook(Arc<Mutex<Book>>);

impl SharedBook {
    /// Shares a book.
    pub fn new(book: Book) -> Self {
        Self(Arc::new(Mutex::new(book)))
    }

    /// Opens the book for a moment.
    pub fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What raft-store and the daemon's own loops call other nodes with.
#[derive(Clone, Debug)]
pub struct NodeTransport<W> {
    wire: W,
    book: SharedBook,
}

impl<W: Wire> NodeTransport<W> {
    /// Puts a wire and a book together.
    pub fn new(wire: W, book: SharedBook) -> Self {
        Self { wire, book }
    }
}

impl<W: Wire> Transport for NodeTransport<W> {
    async fn call(
        &self,
        to: u64,
        frame: Frame,
        deadline: Duration,
    ) -> Result<Frame, TransportError> {
        let known = {
            let book = self.book.lock();
            book.uuid_of(to).map(|uuid| (uuid, book.addresses(uuid)))
        };
        let Some((uuid, addresses)) = known else {
            return Err(TransportError::Unreachable(format!("node {to} has told no address yet")));
        };
        let (kind, body) =
            self.wire.call(uuid, &addresses, (frame.kind, frame.body), deadline).await?;
        Ok(Frame { kind, body })
    }
}
