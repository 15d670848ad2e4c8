//! Versions take each other's places while 5,000 messages a second flow.
