/* What the files of the engine share. */
#ifndef ENGINE_H
#define ENGINE_H

#include <string.h>
#include "contract.h"
#include "memory.h"
#include "quickjs.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

extern JSRuntime *runtime;
extern JSContext *context;

/* While a script is loaded there is no message, no state and no clock. */
extern enum Phase { LOADING, RUNNING } phase;

/* Names by which outputs are read. */
#define NAMES(each) \
    each(kind) each(alert) each(forward) each(publish) each(wake) each(reply) \
    each(key) each(severity) each(status) each(summary) each(value) each(labels) each(sink) \
    each(topic) each(payload) each(contentType) each(retain) each(name) each(afterMs) each(body) \
    each(info) each(warning) each(critical) each(firing) each(resolved)
#define DECLARE(name) extern JSAtom name_##name;
NAMES(DECLARE)

/* Texts between JavaScript and the host. A text without an address is an exception. */
Text text_of(JSValueConst value);
JSValue string(Text text);
JSValue optional_string(OptionalText text);

/* failures.c */
typedef struct Failure {
    /* Negative: the message is rejected. */
    int64_t after_ms;
} Failure;

extern JSClassID failure_class;
void set_up_failures(void);
/* Throws what ends the run with a rejection or a retry. */
JSValue throw_failure(JSValueConst reason, int64_t after_ms);
JSValue throw_rejection(const char *before, Text why);
/* Describes an exception with its place: `TypeError: not a function (function.js:3:9)`. */
Text describe(JSValueConst exception);

/* api.c */
extern JSValue api_names;
void set_up_api(void);
void allow_random(int allows);
/* Makes the object that `handle` is called with. */
JSValue message_object(const Message *handed_in);

/* modules.c */
void set_up_modules(void);
/* Reads the files of an archive. Returns the name and the content of the first. */
void read_files(const char *archive, uint32_t len, const char **name, Text *content);
/* The text of api.js, until it is forgotten. */
const char *api_source(void);
/* Clears the sources, which nothing reads any more: zeros are not part of the image. */
void forget_files(char *archive, uint32_t len);

/* outputs.c */
/* Reads what a handler returned: an output, an array of outputs, or nothing. Returns 0 after an exception. */
int read_outputs(JSValueConst result, Outcome *outcome);

/* Ends the run where the host has broken its part, or there is no memory for the engine itself. */
static inline void check(int is_right) {
    if (!is_right) __builtin_trap();
}

#endif
