//! A server that sends back what it gets, and remembers who it believes to talk to.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use enforcer_tests::lab::Host;
use enforcer_tests::lab::topology::Leaf;
use rustix::net::Shutdown;

/// Longest wait for anything on a socket.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
pub(super) const PORT: u16 = 8000;

/// Both ends of a connection, or of a datagram, as the server sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) peer: SocketAddr,
    pub(super) own: SocketAddr,
}

/// TCP and UDP on one port, both families.
pub(super) struct Echo {
    listener: TcpListener,
    datagrams: UdpSocket,
    threads: Vec<JoinHandle<()>>,
    seen: Receiver<Ends>,
    probers: Vec<IpAddr>,
}

impl Echo {
    /// Connections from `probers` are answered, but not remembered.
    pub(super) fn start(host: &Host, probers: &[IpAddr]) -> Self {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
        let (listener, datagrams) = host
            .enter(|| (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()))
            .unwrap();
        let (sender, seen) = channel();
        let accepting = listener.try_clone().unwrap();
        let answering = datagrams.try_clone().unwrap();
        let threads = vec![
            thread::spawn({
                let sender = sender.clone();
                move || accept(&accepting, &sender)
            }),
            thread::spawn(move || answer(&answering, &sender)),
        ];
        Self {
            listener,
            datagrams,
            threads,
            seen,
            probers: probers.to_vec(),
        }
    }

    /// The ends of the next connection or datagram that has not been asked for yet. One that has come back to the
    /// client has been seen here before that.
    pub(super) fn seen(&self) -> Option<Ends> {
        self.seen
            .try_iter()
            .find(|ends| !self.probers.contains(&ends.peer.ip()))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Both wake the thread that waits on the socket; UDP says that it is not connected, and wakes all the same.
        let _ = rustix::net::shutdown(&self.listener, Shutdown::Both);
        let _ = rustix::net::shutdown(&self.datagrams, Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, seen: &Sender<Ends>) {
    while let Ok((mut stream, peer)) = listener.accept() {
        // Both: a client that has gone without a word must not hold the thread for ever.
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        let own = stream.local_addr().unwrap();
        let _ = seen.send(Ends {
            peer: plain(peer),
            own: plain(own),
        });
        // One connection at a time; a client that goes away ends it.
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..bytes]).is_err() {
                break;
            }
        }
    }
}

fn answer(socket: &UdpSocket, seen: &Sender<Ends>) {
    let mut buffer = [0; 2048];
    while let Ok((bytes, peer)) = socket.recv_from(&mut buffer) {
        if bytes == 0 {
            return;
        }
        let own = socket.local_addr().unwrap();
        let _ = seen.send(Ends {
            peer: plain(peer),
            own: plain(own),
        });
        let _ = socket.send_to(&buffer[..bytes], peer);
    }
}

/// An IPv4 address that an IPv6 socket shows in mapped form, as itself.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => (ip, address.port()).into(),
            None => (ip, address.port()).into(),
        },
        IpAddr::V4(_) => address,
    }
}

/// Opens a connection from a client's own address; `None` if nobody answers.
pub(super) fn connect(from: &Leaf, to: SocketAddr, limit: Duration) -> Option<TcpStream> {
    let stream = from
        .host
        .enter(|| TcpStream::connect_timeout(&to, limit))
        .unwrap();
    stream.ok().inspect(|stream| {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
    })
}

/// Sends so many bytes there and back again, whole segments of them, and compares.
pub(super) fn round_trip(stream: &mut TcpStream, bytes: usize) {
    let sent: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let received = thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        let mut received = vec![0; bytes];
        stream.read_exact(&mut received).unwrap();
        received
    });
    assert!(received == sent, "{bytes} bytes came back changed");
}

/// Sends a datagram and waits for it to come back; `None` if it does not.
pub(super) fn datagram_round_trip(from: &Leaf, to: SocketAddr, limit: Duration) -> Option<SocketAddr> {
    let any = SocketAddr::new(from.address(to.is_ipv6()), 0);
    let socket = from.host.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
    socket.set_read_timeout(Some(limit)).unwrap();
    socket.connect(to).unwrap();
    socket.send(b"every packet is judged").unwrap();
    let mut buffer = [0; 64];
    let bytes = socket.recv(&mut buffer).ok()?;
    assert_eq!(&buffer[..bytes], b"every packet is judged");
    Some(socket.local_addr().unwrap())
}
