/* What scripts see: the functions under api.js, and the message. */
#include "engine.h"

JSValue api_names;

static JSClassID message_class, settings_class;
static int random_is_allowed, has_json, has_bucket, has_settings;
static uint32_t bucket;
static const Message *message;
static JSValue message_json, settings;

static int is_running(const char *what) {
    if (phase == RUNNING) return 1;
    JS_ThrowTypeError(context, "%s can only be used while a message is handled, and not at the top level of a script", what);
    return 0;
}

static JSValue throw_store_error(const StoreError *error) {
    if (error->kind == 2) return JS_ThrowPlainError(context, "%.*s", (int)error->text.len, error->text.at);
    return JS_ThrowPlainError(context, "this function has no state: set state = \"topic\" or \"function\" in function.toml");
}

static int open_bucket(void) {
    if (!is_running("state")) return 0;
    if (has_bucket) return 1;
    StoreResult result;
    host_open("", 0, &result);
    if (result.is_error) {
        throw_store_error(&result.error);
        return 0;
    }
    bucket = result.bucket;
    has_bucket = 1;
    return 1;
}

static JSValue state_get(JSContext *c, JSValueConst this, int argc, JSValueConst *argv) {
    Text key = text_of(argv[0]);
    StoreResult result;
    if (!key.at || !open_bucket()) return JS_EXCEPTION;
    host_get(bucket, key.at, key.len, &result);
    if (result.is_error) return throw_store_error(&result.error);
    return optional_string(result.value);
}

static JSValue state_set(JSContext *c, JSValueConst this, int argc, JSValueConst *argv) {
    Text key = text_of(argv[0]), value = text_of(argv[1]);
    StoreResult result;
    if (!key.at || !value.at || !open_bucket()) return JS_EXCEPTION;
    host_set(bucket, key.at, key.len, value.at, value.len, &result);
    return result.is_error ? throw_store_error(&result.error) : JS_UNDEFINED;
}

static JSValue state_delete(JSContext *c, JSValueConst this, int argc, JSValueConst *argv) {
    Text key = text_of(argv[0]);
    StoreResult result;
    if (!key.at || !open_bucket()) return JS_EXCEPTION;
    host_delete(bucket, key.at, key.len, &result);
    return result.is_error ? throw_store_error(&result.error) : JS_UNDEFINED;
}

static JSValue state_increment(JSContext *c, JSValueConst this, int argc, JSValueConst *argv) {
    Text key = text_of(argv[0]);
    int64_t by;
    CountResult result;
    if (!key.at || JS_ToInt64(context, &by, argv[1]) || !open_bucket()) return JS_EXCEPTION;
    host_increment(bucket, key.at, key.len, by, &result);
    if (result.is_error) return throw_store_error(&result.error);
    if (result.value > (INT64_C(1) << 53) || result.value < -(INT64_C(1) << 53)) {
        return JS_ThrowRangeError(context, "the counter is beyond the whole numbers that JavaScript has");
    }
    return JS_NewInt64(context, result.value);
}

static JSValue state_keys(JSContext *c, JSValueConst this, int argc, JSValueConst *argv) {
    StoreResult result;
    if (!open_bucket()) return JS_EXCEPTION;
    host_list_keys(bucket, 0, NULL, 0, &result);
    if (result.is_error) return throw_store_error(&result.error);
    JSValue keys = JS_NewArray(context);
    for (uint32_t n = 0; n < result.keys.len; n++) {
        if (JS_DefinePropertyValueUint32(context, keys, n, string(result.keys.at[n]), JS_PROP_C_W_E) < 0) return JS_EXCEPTION;
    }
    return keys;
}

/* The settings are an object that reads them when a script first asks: so they are not a part of the image. */

static int is(Text text, const char *word) {
    return text.len == strlen(word) && memcmp(text.at, word, text.len) == 0;
}

/* A number, true and false are what they look like, everything else is a string. What cannot be a number is not parsed: an exception
   that nobody sees costs more than all other settings. */
static JSValue setting_of(Text text) {
    if (is(text, "true") || is(text, "false")) return JS_NewBool(context, text.len == 4);
    for (uint32_t n = 0; n < text.len; n++) {
        if (!strchr("0123456789+-.eE", text.at[n])) return string(text);
    }
    if (text.len > 0) {
        JSValue value = JS_ParseJSON(context, text.at, text.len, "setting");
        if (!JS_IsException(value)) return value;
        JS_FreeValue(context, JS_GetException(context));
    }
    return string(text);
}

static int has_read_settings(void) {
    ConfigResult result;
    if (!is_running("settings")) return 0;
    if (has_settings) return 1;
    host_settings(&result);
    if (result.is_error) return JS_ThrowPlainError(context, "the settings cannot be read"), 0;
    settings = JS_NewObjectProto(context, JS_NULL);
    for (uint32_t n = 0; n < result.all.len; n++) {
        const TextPair *pair = &result.all.at[n];
        JSAtom name = JS_NewAtomLen(context, pair->name.at, pair->name.len);
        if (JS_DefinePropertyValue(context, settings, name, setting_of(pair->value), JS_PROP_ENUMERABLE) < 0) return 0;
    }
    has_settings = 1;
    return 1;
}

static int setting_get(JSContext *c, JSPropertyDescriptor *descriptor, JSValueConst object, JSAtom name) {
    return has_read_settings() ? JS_GetOwnProperty(c, descriptor, settings, name) : -1;
}

static int setting_names(JSContext *c, JSPropertyEnum **names, uint32_t *count, JSValueConst object) {
    return has_read_settings() ? JS_GetOwnPropertyNames(c, names, count, settings, JS_GPN_STRING_MASK) : -1;
}

static int throw_unchanging(void) {
    JS_ThrowTypeError(context, "settings cannot be changed by the function: they come from function.toml and the board");
    return -1;
}

static int setting_delete(JSContext *c, JSValueConst object, JSAtom name) { return throw_unchanging(); }

static int setting_define(JSContext *c, JSValueConst object, JSAtom name, JSValueConst value, JSValueConst getter,
                          JSValueConst setter, int flags) {
    return throw_unchanging();
}

static JSClassExoticMethods SETTINGS = {
    .get_own_property = setting_get,
    .get_own_property_names = setting_names,
    .delete_property = setting_delete,
    .define_own_property = setting_define,
};

static JSValue log_line(JSContext *c, JSValueConst this, int argc, JSValueConst *argv) {
    int32_t level;
    Text line = text_of(argv[1]);
    if (!line.at || JS_ToInt32(context, &level, argv[0])) return JS_EXCEPTION;
    host_log((uint32_t)level, "", 0, line.at, line.len);
    return JS_UNDEFINED;
}

static JSValue random_number(JSContext *c, JSValueConst this, int argc, JSValueConst *argv) {
    if (!random_is_allowed) {
        return JS_ThrowTypeError(context, "Math.random needs `random = true` in section [allow] of function.toml: without it the "
                                          "same message always has the same outcome");
    }
    if (!is_running("Math.random")) return JS_EXCEPTION;
    return JS_NewFloat64(context, (double)(host_random() >> 11) * 0x1p-53);
}

static JSValue fail(JSContext *c, JSValueConst this, int argc, JSValueConst *argv) {
    int64_t after_ms;
    if (JS_ToInt64(context, &after_ms, argv[1])) return JS_EXCEPTION;
    return throw_failure(argv[0], after_ms);
}

static const JSCFunctionListEntry NATIVE[] = {
    JS_CFUNC_DEF("fail", 2, fail),
    JS_CFUNC_DEF("log", 2, log_line),
    JS_CFUNC_DEF("stateGet", 1, state_get),
    JS_CFUNC_DEF("stateSet", 2, state_set),
    JS_CFUNC_DEF("stateDelete", 1, state_delete),
    JS_CFUNC_DEF("stateIncrement", 2, state_increment),
    JS_CFUNC_DEF("stateKeys", 0, state_keys),
    JS_CFUNC_DEF("random", 0, random_number),
};

enum { TOPIC, TEXT, BYTES, JSON, CONTENT_TYPE, PROPERTIES, RECEIVED_AT_MS, CLOCK_SYNCED, ATTEMPT, RETAINED, RESPONSE_TOPIC,
       CORRELATION_DATA };

static JSValue json_of_payload(void) {
    if (!has_json) {
        /* The allocator of handed-in memory leaves a NUL behind, which the parser asks for. */
        JSValue json = JS_ParseJSON(context, message->payload.at, message->payload.len, "payload");
        if (JS_IsException(json)) {
            JSValue why = JS_GetException(context);
            if (!JS_IsError(why)) return JS_Throw(context, why);
            JSValue reason = JS_GetPropertyStr(context, why, "message");
            return throw_rejection("the payload is not JSON: ", text_of(reason));
        }
        message_json = json;
        has_json = 1;
    }
    return JS_DupValue(context, message_json);
}

static JSValue properties_of_message(void) {
    JSValue properties = JS_NewObjectProto(context, JS_NULL);
    for (uint32_t n = message->properties.len; n > 0; n--) {
        /* Of equal names the first counts, as in the Rust SDK. */
        TextPair *pair = &message->properties.at[n - 1];
        JSAtom name = JS_NewAtomLen(context, pair->name.at, pair->name.len);
        if (JS_DefinePropertyValue(context, properties, name, string(pair->value), JS_PROP_C_W_E) < 0) return JS_EXCEPTION;
    }
    return properties;
}

static JSValue message_get(JSContext *c, JSValueConst this, int part) {
    if (!message || JS_GetClassID(this) != message_class) return JS_ThrowTypeError(context, "not a message");
    switch (part) {
    case TOPIC: return string(message->topic);
    case TEXT: return string(message->payload);
    case BYTES: return JS_NewUint8ArrayCopy(context, (const uint8_t *)message->payload.at, message->payload.len);
    case JSON: return json_of_payload();
    case CONTENT_TYPE: return optional_string(message->content_type);
    case PROPERTIES: return properties_of_message();
    case RECEIVED_AT_MS: return JS_NewInt64(context, (int64_t)message->received_at_ms);
    case CLOCK_SYNCED: return JS_NewBool(context, message->clock_synced);
    case ATTEMPT: return JS_NewUint32(context, message->attempt);
    case RETAINED: return JS_NewBool(context, message->retained);
    case RESPONSE_TOPIC: return optional_string(message->response_topic);
    case CORRELATION_DATA:
        if (!message->correlation_data.is_some) return JS_UNDEFINED;
        return JS_NewUint8ArrayCopy(context, (const uint8_t *)message->correlation_data.text.at,
                                    message->correlation_data.text.len);
    default: return JS_UNDEFINED;
    }
}

static const JSCFunctionListEntry MESSAGE[] = {
    JS_CGETSET_MAGIC_DEF("topic", message_get, NULL, TOPIC),
    JS_CGETSET_MAGIC_DEF("text", message_get, NULL, TEXT),
    JS_CGETSET_MAGIC_DEF("bytes", message_get, NULL, BYTES),
    JS_CGETSET_MAGIC_DEF("json", message_get, NULL, JSON),
    JS_CGETSET_MAGIC_DEF("contentType", message_get, NULL, CONTENT_TYPE),
    JS_CGETSET_MAGIC_DEF("properties", message_get, NULL, PROPERTIES),
    JS_CGETSET_MAGIC_DEF("receivedAtMs", message_get, NULL, RECEIVED_AT_MS),
    JS_CGETSET_MAGIC_DEF("clockSynced", message_get, NULL, CLOCK_SYNCED),
    JS_CGETSET_MAGIC_DEF("attempt", message_get, NULL, ATTEMPT),
    JS_CGETSET_MAGIC_DEF("retained", message_get, NULL, RETAINED),
    JS_CGETSET_MAGIC_DEF("responseTopic", message_get, NULL, RESPONSE_TOPIC),
    JS_CGETSET_MAGIC_DEF("correlationData", message_get, NULL, CORRELATION_DATA),
};

JSValue message_object(const Message *handed_in) {
    message = handed_in;
    return JS_NewObjectClass(context, (int)message_class);
}

void allow_random(int allows) {
    random_is_allowed = allows;
}

void set_up_api(void) {
    const JSClassDef handed_in = { .class_name = "Message" };
    const JSClassDef lazy = { .class_name = "Settings", .exotic = &SETTINGS };
    JS_NewClassID(runtime, &message_class);
    JS_NewClassID(runtime, &settings_class);
    check(JS_NewClass(runtime, message_class, &handed_in) == 0 && JS_NewClass(runtime, settings_class, &lazy) == 0);

    JSValue native = JS_NewObject(context);
    JS_SetPropertyFunctionList(context, native, NATIVE, COUNT(NATIVE));
    JSValue seen = JS_NewObjectProtoClass(context, JS_NULL, settings_class);
    check(JS_DefinePropertyValueStr(context, native, "settings", seen, JS_PROP_C_W_E) >= 0);
    JSValue make = JS_Eval(context, api_source(), strlen(api_source()), "sedge:api", JS_EVAL_TYPE_GLOBAL);
    JSValue made = JS_Call(context, make, JS_UNDEFINED, 1, (JSValueConst *)&native);
    check(!JS_IsException(made));
    api_names = JS_GetPropertyStr(context, made, "names");
    JSValue prototype = JS_GetPropertyStr(context, made, "methods");
    JS_SetPropertyFunctionList(context, prototype, MESSAGE, COUNT(MESSAGE));
    JS_SetClassProto(context, message_class, prototype);
    JSValue warm_up = JS_GetPropertyStr(context, made, "warmUp");
    check(!JS_IsException(JS_Call(context, warm_up, JS_UNDEFINED, 0, NULL)));

    JSValue global = JS_GetGlobalObject(context);
    JSPropertyEnum *names;
    uint32_t count;
    check(JS_GetOwnPropertyNames(context, &names, &count, api_names, JS_GPN_STRING_MASK) == 0);
    for (uint32_t n = 0; n < count; n++) {
        JSValue value = JS_GetProperty(context, api_names, names[n].atom);
        check(JS_DefinePropertyValue(context, global, names[n].atom, value, JS_PROP_WRITABLE | JS_PROP_CONFIGURABLE) >= 0);
    }
}
