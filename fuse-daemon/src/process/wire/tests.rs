use std::io::{Read, Seek, Write};

use super::*;

fn pair(limit: usize) -> (Arc<Sender>, Receiver) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let sender = Arc::new(Sender::new(Arc::new(ours)));
    let pump = Arc::clone(&sender);
    std::thread::spawn(move || pump.pump());
    (sender, Receiver::new(Arc::new(theirs), limit, true))
}

#[test]
fn messages_arrive_in_order_however_many_wait_and_each_with_its_descriptor() {
    let (sender, mut receiver) = pair(1 << 20);
    for number in 0..2000_u32 {
        let file = (number % 500 == 0).then(|| {
            let mut file = tempfile::tempfile().unwrap();
            write!(file, "{number}").unwrap();
            file.into()
        });
        sender.send(&(number, "x".repeat(1000)), file);
    }
    for number in 0..2000_u32 {
        let message = receiver.next().unwrap().unwrap();
        let (found, _): (u32, String) = serde_json::from_slice(&message).unwrap();
        assert_eq!(found, number);
        if number % 500 == 0 {
            let mut file = std::fs::File::from(receiver.descriptor().unwrap());
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, number.to_string());
        }
    }
    assert!(receiver.descriptor().is_none());
}

#[test]
fn a_message_that_is_too_large_is_refused_before_it_is_read() {
    let (sender, mut receiver) = pair(100);
    sender.send(&"x".repeat(1000), None);
    assert_eq!(receiver.next().unwrap_err().kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn the_end_of_a_connection_is_heard_by_both_ends() {
    let (sender, mut receiver) = pair(100);
    sender.send(&1, None);
    sender.close();
    sender.send(&2, None);
    assert_eq!(receiver.next().unwrap().unwrap(), b"1");
    assert!(receiver.next().unwrap().is_none());
}

#[test]
fn descriptors_that_nobody_takes_are_closed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut receiver = Receiver::new(Arc::new(theirs), 100, false);
    let (mut reader, writer) = std::io::pipe().unwrap();
    Sender::new(Arc::new(ours)).send(&1, Some(writer.into()));
    assert_eq!(receiver.next().unwrap().unwrap(), b"1");
    // Nobody has the other end of the pipe.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}
