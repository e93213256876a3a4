// SPDX-License-Identifier: Apache-2.0
/*
 * vnc.c - one VNC client.
 *
 * Theory of operation: libvncserver writes and reads as if it could wait, for seconds. So each client has a thread, and a
 * screen of its own: nobody else waits for a slow client, nothing is shared between clients, and what an encoder reads
 * twice is the same both times. The picture comes in through a box: whoever looks at the display fills it, the thread
 * empties it between messages. A box that is not emptied makes its owner look less often, and then at the newest.
 *
 * A client that asks for an update waits (onHold) until the box's owner has said what is new since then, if anything: what
 * it gets is what was shown after it asked, also where it asks only now and then.
 *
 * A client may hang up while something is on its way to it. What it has said before counts all the same: the library
 * closes a client that it cannot write to, so such a one is taken up again, deaf, until there is no more to read.
 *
 * Hostile clients: messages are those of vnc_handle(); file transfer, scaling and chat never reach the library, nor does a
 * security type, which it keeps in globals: that part of the handshake is done when a client comes here.
 *
 * Keys by their place (RFB's QEMU extended key events): the library knows of none, but lets us see that a client asks.
 */
#include "devices/gpu/vnc/csrc/vnc.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#include <rfb/rfb.h>
#include <rfb/rfbregion.h>

#define PIXEL 4u
#define EVENTS 256u		/* that wait to be taken; a client that sends more waits, too */
#define CURSOR_BYTES (VNC_CURSOR_SIDE * VNC_CURSOR_SIDE)

struct box {
	bool full;
	uint32_t screen_width, screen_height;
	uint32_t x, y, width, height;	/* width 0: no pixels */
	uint8_t *pixels;
	uint64_t bytes;			/* of memory at @pixels */
	bool has_cursor;
	struct vnc_cursor cursor;
};

struct vnc {
	pthread_t thread;
	int control;			/* the socket once more: to end what the thread waits for */
	int wake, news;			/* eventfds */
	atomic_bool stop;

	/* the thread only */
	rfbScreenInfoPtr screen;
	rfbClientPtr client;		/* NULL: gone */
	bool deaf;			/* nothing reaches it any more */
	bool resize;
	bool places, places_asked;	/* of keys: the client tells them; has said so just now */
	char name[VNC_NAME_MAX + 1];

	/* under the lock */
	pthread_mutex_t lock;
	struct box box;
	bool ended, asks, waits;
	struct vnc_event events[EVENTS];
	uint32_t first, count;
};

static void signal_fd(int fd)
{
	const uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		return;	/* a full counter wakes as well */
}

/* --- the thread: what comes from the client ------------------------------------------------------------------------ */

static struct vnc *vnc_of(rfbClientPtr client)
{
	return client->screen->screenData;
}

static void put(struct vnc *vnc, struct vnc_event event)
{
	struct vnc_event *last;

	pthread_mutex_lock(&vnc->lock);
	last = &vnc->events[(vnc->first + vnc->count - 1) % EVENTS];
	if (vnc->count && event.kind == VNC_POINTER && last->kind == VNC_POINTER && last->c == event.c) {
		*last = event;		/* it only moved on */
	} else if (vnc->count < EVENTS) {
		vnc->events[(vnc->first + vnc->count++) % EVENTS] = event;
	}
	pthread_mutex_unlock(&vnc->lock);
	signal_fd(vnc->news);
}

static void on_key(rfbBool down, rfbKeySym key, rfbClientPtr client)
{
	put(vnc_of(client), (struct vnc_event){VNC_KEY, key, down ? 1 : 0, 0});
}

/* That the client can tell places of keys. The library holds a lock of all clients: it is answered later. */
static rfbBool on_encoding(rfbClientPtr client, void **data, int encoding)
{
	(void)data;
	if (encoding != (int)rfbEncodingQemuExtendedKeyEvent)
		return FALSE;
	vnc_of(client)->places_asked = true;
	return TRUE;
}

/* Once for the process. */
static void register_places(void)
{
	static int encodings[] = {(int)rfbEncodingQemuExtendedKeyEvent, 0};
	static rfbProtocolExtension places = {.pseudoEncodings = encodings, .enablePseudoEncoding = on_encoding};

	rfbRegisterProtocolExtension(&places);
}

/* An update without a picture: the client is to do so. */
static void answer_places(struct vnc *vnc)
{
	struct {
		rfbFramebufferUpdateMsg update;
		rfbFramebufferUpdateRectHeader rect;
	} message = {
		.update = {.type = rfbFramebufferUpdate, .nRects = htons(1)},
		.rect = {.encoding = htonl(rfbEncodingQemuExtendedKeyEvent)},
	};

	vnc->places_asked = false;
	vnc->places = true;
	if (rfbWriteExact(vnc->client, (const char *)&message, sizeof(message)) <= 0)
		rfbCloseClient(vnc->client);
}

static void on_place(struct vnc *vnc)
{
	rfbQemuExtendedKeyEventMsg message;

	if (rfbReadExact(vnc->client, (char *)&message, sz_rfbQemuExtendedKeyEventMsg) <= 0 || message.subtype != 0) {
		rfbCloseClient(vnc->client);
		return;
	}
	put(vnc, (struct vnc_event){VNC_KEY, ntohl(message.keysym), message.down ? 1 : 0, ntohl(message.keycode)});
}

static void on_pointer(int buttons, int x, int y, rfbClientPtr client)
{
	put(vnc_of(client), (struct vnc_event){VNC_POINTER, (uint32_t)x, (uint32_t)y, (uint32_t)buttons & 0xff});
}

static int on_resize(int width, int height, int screens, rfbExtDesktopScreen *layout, rfbClientPtr client)
{
	struct vnc *vnc = vnc_of(client);

	(void)layout;
	if (!vnc->resize)
		return rfbExtDesktopSize_ResizeProhibited;
	if (screens != 1 || width < 16 || height < 16 || width > VNC_SIDE_MAX || height > VNC_SIDE_MAX)
		return rfbExtDesktopSize_InvalidScreenLayout;
	put(vnc, (struct vnc_event){VNC_RESIZE, (uint32_t)width, (uint32_t)height, 0});
	return rfbExtDesktopSize_Success;
}

static void on_request(rfbClientPtr client, rfbFramebufferUpdateRequestMsg *message)
{
	struct vnc *vnc = vnc_of(client);

	(void)message;
	client->onHold = TRUE;
	pthread_mutex_lock(&vnc->lock);
	vnc->asks = true;
	pthread_mutex_unlock(&vnc->lock);
	signal_fd(vnc->news);
}

static void on_cut_text(char *text, int bytes, rfbClientPtr client)
{
	(void)text;
	(void)bytes;
	(void)client;
}

/* The thread has room for events of a message. */
static bool has_event_room(struct vnc *vnc)
{
	bool room;

	pthread_mutex_lock(&vnc->lock);
	room = vnc->count < EVENTS;
	pthread_mutex_unlock(&vnc->lock);
	return room;
}

/* One message; others than these end the connection. */
static void vnc_handle(struct vnc *vnc)
{
	rfbClientPtr client = vnc->client;
	uint8_t kind;
	ssize_t n = recv(client->sock, &kind, 1, MSG_PEEK | MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		rfbCloseClient(client);
		return;
	}
	if (client->state == RFB_NORMAL) {
		switch (kind) {
		case rfbSetPixelFormat:
		case rfbSetEncodings:
		case rfbFramebufferUpdateRequest:
		case rfbKeyEvent:
		case rfbPointerEvent:
		case rfbClientCutText:
		case rfbSetDesktopSize:
			break;
		case rfbQemuEvent:
			if (vnc->places) {
				on_place(vnc);
				return;
			}
			/* fall through */
		default:
			rfbCloseClient(client);
			return;
		}
	}
	rfbProcessClientMessage(client);
	client->enableExtendedClipboard = FALSE;
	switch (client->preferredEncoding) {
	case rfbEncodingCoRRE:
	case rfbEncodingUltra:
	case rfbEncodingZYWRLE:
		client->preferredEncoding = rfbEncodingRaw;	/* old, odd, hardly ever used */
		break;
	default:
		break;
	}
}

/* --- the thread: what goes to the client --------------------------------------------------------------------------- */

static void free_cursor(struct vnc *vnc)
{
	rfbSetCursor(vnc->screen, NULL);
}

static void set_cursor(struct vnc *vnc, const struct vnc_cursor *from)
{
	rfbCursorPtr cursor;
	uint8_t *rich, *alpha, *mask;

	/* where libvncserver draws it itself */
	vnc->screen->cursorX = from->x + (int)from->hot_x;
	vnc->screen->cursorY = from->y + (int)from->hot_y;
	cursor = from->shown ? calloc(1, sizeof(*cursor)) : NULL;
	rich = cursor ? malloc(CURSOR_BYTES * PIXEL) : NULL;
	alpha = rich ? malloc(CURSOR_BYTES) : NULL;
	mask = alpha ? calloc(VNC_CURSOR_SIDE, VNC_CURSOR_SIDE / 8) : NULL;
	if (!mask) {
		free(cursor);
		free(rich);
		free(alpha);
		free_cursor(vnc);
		return;
	}
	for (uint32_t i = 0; i < CURSOR_BYTES; i++) {
		const uint8_t *at = &from->image[i * PIXEL];

		memcpy(rich + i * PIXEL, at, 3);
		rich[i * PIXEL + 3] = 0;
		alpha[i] = at[3];
		if (at[3] & 0x80)
			mask[i / 8] = (uint8_t)(mask[i / 8] | 0x80u >> i % 8);
	}
	*cursor = (rfbCursor){
		.cleanup = TRUE, .cleanupMask = TRUE, .cleanupRichSource = TRUE, .cleanupSource = TRUE,
		.width = VNC_CURSOR_SIDE, .height = VNC_CURSOR_SIDE,
		.xhot = (unsigned short)from->hot_x, .yhot = (unsigned short)from->hot_y,
		.mask = mask, .richSource = rich, .alphaSource = alpha, .alphaPreMultiplied = TRUE,
	};
	rfbSetCursor(vnc->screen, cursor);
}

/* Pixels as a display has them; the library likes blue and red the other way round. */
static void set_format(rfbScreenInfoPtr screen)
{
	screen->serverFormat.depth = 24;
	screen->serverFormat.redShift = 16;
	screen->serverFormat.blueShift = 0;
}

/* Another size: false where there is no memory for it. */
static bool new_size(struct vnc *vnc, uint32_t width, uint32_t height)
{
	char *before = vnc->screen->frameBuffer, *pixels = calloc((size_t)width * height, PIXEL);

	if (!pixels)
		return false;
	rfbNewFramebuffer(vnc->screen, pixels, (int)width, (int)height, 8, 3, PIXEL);
	set_format(vnc->screen);
	vnc->screen->setTranslateFunction(vnc->client);
	if (!sraRgnEmpty(vnc->client->requestedRegion)) {	/* what was asked for lies in the old picture */
		sraRgnDestroy(vnc->client->requestedRegion);
		vnc->client->requestedRegion = sraRgnCreateRect(0, 0, (int)width, (int)height);
	}
	free(before);
	return true;
}

/* The box, which is full and hence ours, into our picture. */
static bool empty_box(struct vnc *vnc)
{
	struct box *box = &vnc->box;
	rfbScreenInfoPtr screen = vnc->screen;

	if (((uint32_t)screen->width != box->screen_width || (uint32_t)screen->height != box->screen_height) &&
	    !new_size(vnc, box->screen_width, box->screen_height))
		return false;
	for (uint32_t row = 0; row < box->height && box->width; row++)
		memcpy(screen->frameBuffer + ((uint64_t)(box->y + row) * box->screen_width + box->x) * PIXEL,
		       box->pixels + (uint64_t)row * box->width * PIXEL, (size_t)box->width * PIXEL);
	if (box->width)
		rfbMarkRectAsModified(screen, (int)box->x, (int)box->y, (int)(box->x + box->width),
				      (int)(box->y + box->height));
	if (box->has_cursor)
		set_cursor(vnc, &box->cursor);
	vnc->client->onHold = FALSE;
	return true;
}

/* Where writing has closed it: what it said is still to be read. */
static void listen_on(struct vnc *vnc)
{
	int fd;

	if (vnc->client->sock >= 0 || vnc->deaf)
		return;
	vnc->deaf = true;
	fd = fcntl(vnc->control, F_DUPFD_CLOEXEC, 0);
	if (fd >= FD_SETSIZE)
		close(fd);
	else
		vnc->client->sock = fd;
}

/* What is new reaches the client, or ends it. */
static void update(struct vnc *vnc)
{
	bool full, waits, changed;

	pthread_mutex_lock(&vnc->lock);
	full = vnc->box.full;
	pthread_mutex_unlock(&vnc->lock);
	if (full && !empty_box(vnc)) {
		rfbCloseClient(vnc->client);
		return;
	}
	rfbUpdateClient(vnc->client);
	waits = vnc->client->state == RFB_NORMAL && !sraRgnEmpty(vnc->client->requestedRegion);
	pthread_mutex_lock(&vnc->lock);
	if (full)
		vnc->box.full = false;
	changed = full || waits != vnc->waits;
	vnc->waits = waits;
	pthread_mutex_unlock(&vnc->lock);
	if (changed)
		signal_fd(vnc->news);
}

static void serve(struct vnc *vnc)
{
	while (vnc->client->sock >= 0 && !atomic_load(&vnc->stop)) {
		bool room = has_event_room(vnc);
		struct pollfd fds[] = {
			{.fd = vnc->wake, .events = POLLIN},
			{.fd = room ? vnc->client->sock : -1, .events = POLLIN},
		};
		uint64_t woken;

		if (poll(fds, 2, vnc->deaf && room ? 0 : -1) < 0 && errno != EINTR)
			return;
		if (fds[0].revents && read(vnc->wake, &woken, sizeof(woken)) < 0 && errno != EAGAIN)
			return;
		if (fds[1].revents)
			vnc_handle(vnc);
		else if (vnc->deaf && room)
			return;
		if (vnc->client->sock >= 0 && !vnc->deaf) {
			if (vnc->places_asked)
				answer_places(vnc);
			if (vnc->client->sock >= 0)
				update(vnc);
			listen_on(vnc);
		}
	}
}

static void *run(void *arg)
{
	struct vnc *vnc = arg;

	prctl(PR_SET_NAME, "vhost-vnc");
	serve(vnc);
	rfbClientConnectionGone(vnc->client);
	vnc->client = NULL;
	free_cursor(vnc);
	free(vnc->screen->frameBuffer);
	rfbScreenCleanup(vnc->screen);	/* here: encoders keep memory for each thread */
	pthread_mutex_lock(&vnc->lock);
	vnc->ended = true;
	pthread_mutex_unlock(&vnc->lock);
	signal_fd(vnc->news);
	return NULL;
}

/* --- beginning and end --------------------------------------------------------------------------------------------- */

static void quiet(const char *format, ...)
{
	(void)format;
}

/* A screen, and a client on @fd that has a greeting behind it. */
static bool make(struct vnc *vnc, int fd, uint32_t minor, uint32_t width, uint32_t height)
{
	static const char nothing[4] = "RFB ";	/* that is no web socket, so nobody waits for more */
	rfbScreenInfoPtr screen = rfbGetScreen(NULL, NULL, (int)width, (int)height, 8, 3, PIXEL);
	int pair[2];

	if (!screen)
		return false;
	vnc->screen = screen;
	screen->frameBuffer = calloc((size_t)width * height, PIXEL);
	set_format(screen);
	screen->screenData = vnc;
	screen->desktopName = vnc->name;
	screen->cursor = NULL;
	screen->deferUpdateTime = screen->deferPtrUpdateTime = 0;
	screen->alwaysShared = TRUE;
	screen->maxClientWait = 20000;	/* milliseconds */
	screen->kbdAddEvent = on_key;
	screen->ptrAddEvent = on_pointer;
	screen->setXCutText = on_cut_text;
	screen->setDesktopSizeHook = on_resize;
	if (!screen->frameBuffer || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return false;
	if (pair[0] >= FD_SETSIZE || write(pair[1], nothing, sizeof(nothing)) < 0) {
		close(pair[0]);
		close(pair[1]);
		errno = EMFILE;
		return false;
	}
	vnc->client = rfbNewClient(screen, pair[0]);	/* closes it where it fails */
	close(pair[1]);
	if (!vnc->client)
		return false;
	/* its greeting went nowhere; the client has had another one */
	if (dup3(fd, pair[0], O_CLOEXEC) < 0 || !rfbSetNonBlocking(pair[0]))
		return false;
	vnc->client->state = RFB_INITIALISATION;
	vnc->client->protocolMajorVersion = 3;
	vnc->client->protocolMinorVersion = (int)minor;
	vnc->client->clientFramebufferUpdateRequestHook = on_request;
	return true;
}

static void discard(struct vnc *vnc)
{
	int error = errno;

	if (vnc->client)
		rfbClientConnectionGone(vnc->client);
	if (vnc->screen) {
		free(vnc->screen->frameBuffer);
		rfbScreenCleanup(vnc->screen);
	}
	if (vnc->wake >= 0)
		close(vnc->wake);
	close(vnc->control);
	pthread_mutex_destroy(&vnc->lock);
	free(vnc);
	errno = error;
}

static bool start(struct vnc *vnc)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);	/* signals are Python's */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&vnc->thread, NULL, run, vnc);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	errno = rc;
	return rc == 0;
}

struct vnc *vnc_new(int fd, int news, uint32_t minor, uint32_t width, uint32_t height, const char *name, int resize)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct vnc *vnc = calloc(1, sizeof(*vnc));

	pthread_once(&once, register_places);
	rfbLog = rfbErr = quiet;	/* who comes and goes is logged by who asks us */
	if (!vnc) {
		close(fd);
		return NULL;
	}
	pthread_mutex_init(&vnc->lock, NULL);
	strncpy(vnc->name, name, VNC_NAME_MAX);
	vnc->control = fd;
	vnc->news = news;
	vnc->resize = resize != 0;
	vnc->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vnc->wake < 0 || !make(vnc, fd, minor, width, height) || !start(vnc)) {
		discard(vnc);
		return NULL;
	}
	return vnc;
}

void vnc_free(struct vnc *vnc)
{
	atomic_store(&vnc->stop, true);
	shutdown(vnc->control, SHUT_RDWR);
	signal_fd(vnc->wake);
	pthread_join(vnc->thread, NULL);
	close(vnc->control);
	close(vnc->wake);
	free(vnc->box.pixels);
	pthread_mutex_destroy(&vnc->lock);
	free(vnc);
}

/* --- for whoever looks at the display ------------------------------------------------------------------------------ */

uint32_t vnc_state(struct vnc *vnc)
{
	uint32_t state = 0;

	pthread_mutex_lock(&vnc->lock);
	if (vnc->ended)
		state |= VNC_ENDED;
	if (vnc->asks)
		state |= VNC_ASKS;
	vnc->asks = false;
	if (vnc->waits)
		state |= VNC_WAITS;
	if (!vnc->box.full)
		state |= VNC_ROOM;
	pthread_mutex_unlock(&vnc->lock);
	return state;
}

uint32_t vnc_events(struct vnc *vnc, struct vnc_event *out, uint32_t max)
{
	uint32_t n = 0;
	bool was_full;

	pthread_mutex_lock(&vnc->lock);
	was_full = vnc->count == EVENTS;
	while (n < max && vnc->count) {
		out[n++] = vnc->events[vnc->first];
		vnc->first = (vnc->first + 1) % EVENTS;
		vnc->count--;
	}
	pthread_mutex_unlock(&vnc->lock);
	if (was_full && n)
		signal_fd(vnc->wake);
	return n;
}

uint8_t *vnc_room(struct vnc *vnc, uint32_t width, uint32_t height)
{
	struct box *box = &vnc->box;
	uint64_t bytes = (uint64_t)width * height * PIXEL;

	/* an empty box is its owner's: no lock */
	if (bytes > box->bytes || bytes < box->bytes / 16) {
		free(box->pixels);
		box->pixels = malloc(bytes);
		box->bytes = box->pixels ? bytes : 0;
	}
	return box->pixels;
}

void vnc_post(struct vnc *vnc, uint32_t screen_width, uint32_t screen_height, uint32_t x, uint32_t y, uint32_t width,
	      uint32_t height, const struct vnc_cursor *cursor)
{
	struct box *box = &vnc->box;

	pthread_mutex_lock(&vnc->lock);
	box->screen_width = screen_width;
	box->screen_height = screen_height;
	box->x = x;
	box->y = y;
	box->width = width;
	box->height = height;
	box->has_cursor = cursor != NULL;
	if (cursor)
		box->cursor = *cursor;
	box->full = true;
	pthread_mutex_unlock(&vnc->lock);
	signal_fd(vnc->wake);
}

void vnc_answer(uint8_t *challenge, const char *password)
{
	char key[9] = {0};

	memcpy(key, password, 8);
	rfbEncryptBytes(challenge, key);
	explicit_bzero(key, sizeof(key));
}
