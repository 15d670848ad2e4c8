/* The contract in C: the records of guest-sdk/wit/world.wit in the layout of the canonical ABI, and the imports. */
#ifndef CONTRACT_H
#define CONTRACT_H

#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))

#define STORE "wasi:keyvalue/store@0.2.0-draft2"
#define ATOMICS "wasi:keyvalue/atomics@0.2.0-draft2"

typedef struct Text {
    const char *at;
    uint32_t len;
} Text;

typedef struct TextPair {
    Text name, value;
} TextPair;

typedef struct OptionalText {
    uint8_t is_some;
    Text text;
} OptionalText;

/* error of wasi:keyvalue. Case 0: no such store, 1: access denied, 2: the text. */
typedef struct StoreError {
    uint8_t kind;
    Text text;
} StoreError;

typedef struct StoreResult {
    uint8_t is_error;
    union {
        StoreError error;
        uint32_t bucket;
        OptionalText value;
        struct { Text *at; uint32_t len; OptionalText cursor; } keys;
    };
} StoreResult;

typedef struct CountResult {
    uint8_t is_error;
    union {
        StoreError error;
        _Alignas(8) int64_t value;
    };
} CountResult;

typedef struct ConfigResult {
    uint8_t is_error;
    union {
        StoreError error;
        struct { TextPair *at; uint32_t len; } all;
    };
} ConfigResult;

IMPORT(STORE, "open") void host_open(const char *, uint32_t, StoreResult *);
IMPORT(STORE, "[method]bucket.get") void host_get(uint32_t, const char *, uint32_t, StoreResult *);
IMPORT(STORE, "[method]bucket.set") void host_set(uint32_t, const char *, uint32_t, const char *, uint32_t, StoreResult *);
IMPORT(STORE, "[method]bucket.delete") void host_delete(uint32_t, const char *, uint32_t, StoreResult *);
IMPORT(STORE, "[method]bucket.list-keys")
void host_list_keys(uint32_t, uint32_t, const char *, uint32_t, StoreResult *);
IMPORT(ATOMICS, "increment") void host_increment(uint32_t, const char *, uint32_t, int64_t, CountResult *);
IMPORT("wasi:logging/logging@0.1.0-draft", "log")
void host_log(uint32_t, const char *, uint32_t, const char *, uint32_t);
IMPORT("wasi:config/store@0.2.0-rc.1", "get-all") void host_settings(ConfigResult *);
IMPORT("wasi:random/random@0.2.0", "get-random-u64") uint64_t host_random(void);

typedef struct Message {
    Text topic, payload;
    OptionalText content_type;
    struct { TextPair *at; uint32_t len; } properties;
    _Alignas(8) uint64_t received_at_ms;
    uint8_t clock_synced;
    uint32_t attempt;
    uint8_t retained;
    OptionalText response_topic, correlation_data;
} Message;

typedef struct Publication {
    Text topic, payload;
    OptionalText content_type;
    uint8_t retain;
    OptionalText sink;
} Publication;

typedef struct Alert {
    Text key;
    uint8_t severity, status;
    Text summary;
    struct { uint8_t is_some; double number; } value;
    struct { TextPair *at; uint32_t len; } labels;
    OptionalText sink;
} Alert;

typedef struct Wake {
    Text name;
    struct { uint8_t is_some; uint64_t ms; } after;
} Wake;

typedef struct Reply {
    uint16_t status;
    OptionalText content_type;
    Text body;
} Reply;

enum { ALERT, FORWARD, PUBLISH, WAKE, REPLY };

typedef struct Output {
    uint8_t kind;
    union {
        _Alignas(8) Alert alert;
        Publication publication;
        Wake wake;
        Reply reply;
    };
} Output;

/* Cases of a failure. The contract has the first two; the third is the host's own, for an exception that nobody caught. */
enum { REJECT, RETRY, EXCEPTION };

typedef struct Outcome {
    uint8_t is_failure;
    union {
        struct { _Alignas(8) Output *at; uint32_t len; } outputs;
        struct {
            _Alignas(8) uint8_t kind;
            union {
                _Alignas(8) Text reason;
                struct { uint64_t after_ms; Text reason; } retry;
            };
        } failure;
    };
} Outcome;

_Static_assert(sizeof(Output) == 72, "as in the contract");
_Static_assert(sizeof(Outcome) == 32, "as in the contract");
_Static_assert(sizeof(Message) == 88, "as in the contract");
_Static_assert(sizeof(CountResult) == 24, "as in the contract");

#endif
