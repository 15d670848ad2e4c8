/* Reads the outputs that a handler returned off their objects, into the records of the contract. */
#include "engine.h"

static int get(JSValueConst object, JSAtom name, JSValue *value) {
    *value = JS_GetProperty(context, object, name);
    return !JS_IsException(*value);
}

static int get_text(JSValueConst object, JSAtom name, Text *text) {
    JSValue value;
    if (!get(object, name, &value)) return 0;
    if (JS_IsString(value)) {
        *text = text_of(value);
        return text->at != NULL;
    }
    const char *property = JS_AtomToCString(context, name);
    JS_ThrowTypeError(context, "the output's `%s` is not a string", property ? property : "?");
    return 0;
}

static int get_optional_text(JSValueConst object, JSAtom name, OptionalText *text) {
    JSValue value;
    if (!get(object, name, &value)) return 0;
    if (JS_IsUndefined(value) || JS_IsNull(value)) {
        *text = (OptionalText){ 0 };
        return 1;
    }
    text->is_some = 1;
    return get_text(object, name, &text->text);
}

/* Text or bytes. */
static int get_content(JSValueConst object, JSAtom name, Text *content) {
    JSValue value;
    if (!get(object, name, &value)) return 0;
    if (!JS_IsObject(value)) return get_text(object, name, content);
    size_t len = 0;
    uint8_t *at = JS_GetUint8Array(context, &len, value);
    *content = (Text){ (const char *)at, (uint32_t)len };
    if (at || !JS_HasException(context)) return 1;
    const char *property = JS_AtomToCString(context, name);
    JS_FreeValue(context, JS_GetException(context));
    JS_ThrowTypeError(context, "the output's `%s` is neither text nor a Uint8Array", property ? property : "?");
    return 0;
}

static int get_choice(JSValueConst object, JSAtom name, const JSAtom *choices, uint8_t count, uint8_t *choice) {
    JSValue value;
    if (!get(object, name, &value)) return 0;
    JSAtom found = JS_ValueToAtom(context, value);
    for (*choice = 0; *choice < count; ++*choice) {
        if (choices[*choice] == found) return 1;
    }
    const char *property = JS_AtomToCString(context, name), *shown = JS_AtomToCString(context, found);
    JS_ThrowTypeError(context, "the output's `%s` is unknown: %s", property ? property : "?", shown ? shown : "?");
    return 0;
}

static int get_labels(JSValueConst object, Alert *alert) {
    JSValue labels;
    JSPropertyEnum *names;
    uint32_t count;
    if (!get(object, name_labels, &labels)) return 0;
    if (!JS_IsObject(labels)) return 1;
    if (JS_GetOwnPropertyNames(context, &names, &count, labels, JS_GPN_STRING_MASK | JS_GPN_ENUM_ONLY) < 0) return 0;
    alert->labels.at = count == 0 ? NULL : malloc(count * sizeof(TextPair));
    if (count > 0 && !alert->labels.at) return JS_ThrowOutOfMemory(context), 0;
    for (uint32_t n = 0; n < count; n++) {
        TextPair *pair = &alert->labels.at[n];
        JSValue value;
        if (!get(labels, names[n].atom, &value)) return 0;
        pair->name = text_of(JS_AtomToString(context, names[n].atom));
        pair->value = text_of(value);
        if (!pair->name.at || !pair->value.at) return 0;
    }
    alert->labels.len = count;
    return 1;
}

static int read_alert(JSValueConst object, Alert *alert) {
    const JSAtom severities[] = { name_info, name_warning, name_critical }, statuses[] = { name_firing, name_resolved };
    JSValue value;
    if (!get_text(object, name_key, &alert->key) || !get_text(object, name_summary, &alert->summary)
        || !get_choice(object, name_severity, severities, COUNT(severities), &alert->severity)
        || !get_choice(object, name_status, statuses, COUNT(statuses), &alert->status)
        || !get_labels(object, alert) || !get(object, name_value, &value)) {
        return 0;
    }
    if (JS_IsNumber(value)) {
        alert->value.is_some = 1;
        if (JS_ToFloat64(context, &alert->value.number, value)) return 0;
    }
    return get_optional_text(object, name_sink, &alert->sink);
}

static int read_publication(JSValueConst object, Publication *publication) {
    JSValue retain;
    if (!get_text(object, name_topic, &publication->topic) || !get_content(object, name_payload, &publication->payload)
        || !get_optional_text(object, name_contentType, &publication->content_type) || !get(object, name_retain, &retain)) {
        return 0;
    }
    publication->retain = (uint8_t)(JS_ToBool(context, retain) > 0);
    return get_optional_text(object, name_sink, &publication->sink);
}

static int read_wake(JSValueConst object, Wake *wake) {
    JSValue after;
    int64_t ms;
    if (!get_text(object, name_name, &wake->name) || !get(object, name_afterMs, &after)) return 0;
    if (JS_IsUndefined(after) || JS_IsNull(after)) return 1;
    if (JS_ToInt64(context, &ms, after)) return 0;
    wake->after.is_some = 1;
    wake->after.ms = ms < 0 ? 0 : (uint64_t)ms;
    return 1;
}

static int read_reply(JSValueConst object, Reply *reply) {
    JSValue status;
    int32_t number;
    if (!get(object, name_status, &status) || JS_ToInt32(context, &number, status)) return 0;
    reply->status = (uint16_t)number;
    return get_optional_text(object, name_contentType, &reply->content_type) && get_content(object, name_body, &reply->body);
}

static int read_output(JSValueConst object, Output *output) {
    const JSAtom kinds[] = { name_alert, name_forward, name_publish, name_wake, name_reply };
    JSValue kind;
    if (!JS_IsObject(object) || JS_IsFunction(context, object) || !get(object, name_kind, &kind) || JS_IsUndefined(kind)) {
        if (JS_HasException(context)) return 0;
        Text shown = JS_IsObject(object) ? (Text){ "an object without a kind", 24 } : text_of(object);
        JS_ThrowTypeError(context, "handle returned something that is not an output (%.*s): return alert.firing(..), "
                                   "alert.resolved(..), forward(..), publish(..), an array of them, or nothing",
                          (int)(shown.len > 60 ? 60 : shown.len), shown.at ? shown.at : "?");
        return 0;
    }
    if (!get_choice(object, name_kind, kinds, COUNT(kinds), &output->kind)) return 0;
    switch (output->kind) {
    case ALERT: return read_alert(object, &output->alert);
    case FORWARD: case PUBLISH: return read_publication(object, &output->publication);
    case WAKE: return read_wake(object, &output->wake);
    default: return read_reply(object, &output->reply);
    }
}

int read_outputs(JSValueConst result, Outcome *outcome) {
    int is_list = JS_IsArray(result);
    int64_t len = 1;
    if (JS_IsUndefined(result) || JS_IsNull(result)) return 1;
    if (is_list && JS_GetLength(context, result, &len)) return 0;
    if (len == 0) return 1;
    if (len > 100000) return JS_ThrowRangeError(context, "handle returned %lld outputs", (long long)len), 0;
    Output *outputs = calloc((size_t)len, sizeof *outputs);
    if (!outputs) return JS_ThrowOutOfMemory(context), 0;
    uint32_t count = 0;
    for (int64_t n = 0; n < len; n++) {
        JSValue one = is_list ? JS_GetPropertyInt64(context, result, n) : JS_DupValue(context, result);
        if (JS_IsException(one)) return 0;
        /* `condition && output` leaves something false where there is no output. */
        if (is_list && (JS_IsUndefined(one) || JS_IsNull(one) || (JS_IsBool(one) && JS_ToBool(context, one) == 0))) continue;
        if (!read_output(one, &outputs[count])) return 0;
        count++;
    }
    outcome->outputs.at = outputs;
    outcome->outputs.len = count;
    return 1;
}
